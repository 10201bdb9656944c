"""Tests of etl.storage."""
