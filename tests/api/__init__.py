"""Tests of etl.api."""
