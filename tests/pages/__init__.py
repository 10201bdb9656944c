"""Tests of etl.pages."""
