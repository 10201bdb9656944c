"""The API: what is asked, what is answered, and over what connection. May import `config`, `model` and `errors`.

Read `request` and `response` first (values alone), then `client` (bounds, repeats, paces and counts the requests of one
account) upon `retry`, `rate` and `cap`, and last the connection: `http`, `route`, `sources`. `redact` decides what an
error may show of a server's words.
"""
