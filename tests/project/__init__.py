"""Tests of the files around the code: layers, README, configurations, the catalogue of faults."""
