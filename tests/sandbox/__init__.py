"""Tests of etl.sandbox."""
