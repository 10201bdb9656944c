"""Tests of etl.normalize."""
