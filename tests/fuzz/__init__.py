"""Fuzzing: arbitrary bytes for all product code that reads bytes, with a stored corpus.

`python -m tests.fuzz --seconds N` searches for failures and adds them to the corpus, which the tests replay.
"""
