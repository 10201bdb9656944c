"""Tests of etl.commands."""
