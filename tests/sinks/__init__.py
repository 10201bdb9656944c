"""Tests of etl.sinks."""
