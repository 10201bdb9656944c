"""Fuzzing: bytes that nobody meant, for everything of ours that reads bytes, with a corpus that is kept.

`python -m tests.fuzz --seconds N` goes on looking; what it finds is put into the corpus, which the tests replay.
"""
