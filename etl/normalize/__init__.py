"""Convert the server's pages to columns: nothing lost, nothing guessed, and as fast as Arrow reads JSON.

Imports only `schema`, `model`, `errors` and `times`. Read `normalizer` first (which contact takes which path), then
`columnar` (many at once) and `rowwise` (one at a time), which give the same result; `shape` derives both from the
columns.

`normalizer` takes 0.15 s to import, so that only the thread that normalizes imports it.
"""
