"""Tests of etl.config."""
