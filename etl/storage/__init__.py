"""Files, objects, locks, staged parts and the SQL engine: what sinks and extraction build on.

May import `schema`, `model` and `errors`. `files`, `objects`, `preflight`, `lock` and `duck` know nothing of contacts;
`staging` and `row_hash` know their columns.

Read `files` first (the file operations for durable publishing), then `staging` (parts on disk), `lock` and `duck`.
`objects` and `local_objects` are the same operations on an object store and on a folder.
"""
