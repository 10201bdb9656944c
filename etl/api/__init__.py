"""API access: requests, responses and connections. May import `config`, `model` and `errors`.

Read `request` and `response` first (values only), then `client` (limits, retries, paces and counts the requests of one
account) with `retry`, `rate` and `cap`, and last the connection: `http`, `route`, `sources`. `redact` decides which
parts of a server message an error may show.
"""
