"""API access: requests, responses and connections. Imports only `config` and the values below it.

Read `request` and `response` first (values only), then `client` (limits, retries, paces and counts the requests of one
account) with `retry`, `rate` and `cap`, and last the connection: `http`, `route`, `sources` (the only one that knows
the sandbox). `redact` decides which parts of a server message an error may show.
"""
