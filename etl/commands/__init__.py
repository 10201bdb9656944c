"""One module per command; each returns a value. Nothing here prints or knows a layout.

May import everything but `cli`. Read `result` (the values that commands return), then `run`, `publish` and its `guard`;
the others are independent. `library` is the public interface of the package.
"""
