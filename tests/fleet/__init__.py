"""Tests of etl.fleet."""
