"""Reading one account completely, and knowing that it was. May import `api`, `normalize`, `storage` and what is below.

Read `strategy` first (what a run reads, and why that is enough), then `windows` and `fetch` (ranges of time whose one
answer proves itself), `sweep` (what changed since a moment), `pages` and `crosscheck` (the page scan beside it), and
`account`, which joins reading and writing. It never sees `sinks`.
"""
