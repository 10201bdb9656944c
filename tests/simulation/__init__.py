"""Simulated worlds: production code in virtual time, checked by an oracle that knows the true state of the account.

One seed is one schedule: a server personality, an account that changes while it is read, a full run and further runs.
The seed determines everything, so a failure is reproduced by `python -m tests.simulation --seed N`.
"""
