"""Tests of etl.extract."""
