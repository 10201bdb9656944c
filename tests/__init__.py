"""All tests; folders mirror those of etl. bench, crash, fuzz and simulation are also commands (see the Makefile)."""
