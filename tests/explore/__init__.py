"""Tests of etl.explore."""
