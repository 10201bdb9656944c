"""Tests of the whole product: commands against a server, with real files, processes and signals."""
