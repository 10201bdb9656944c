"""One module per command: what it does and what it returns. Nothing here prints. May import everything but `cli`.

Read `run` first, then `publish` and its `guard`; the others are independent.
"""
