"""A cluster in which workers and coordinators die at random moments; `python -m tests.cluster` plays many rounds."""
