"""Simulated worlds: production code in virtual time against an oracle that knows the truth.

One seed is one schedule: a server personality, an account that changes while it is read, a full run and the runs after
it. Everything follows from the seed, so a failure is reproduced by `python -m tests.simulation --seed N`.
"""
