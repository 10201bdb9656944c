"""Tests of the files around the code: layers, README, configurations, fault catalogue."""
