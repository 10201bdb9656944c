"""Tests of etl.cli."""
