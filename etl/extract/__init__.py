"""Extraction of one account, with proof of completeness. May import `api`, `normalize`, `storage` and the layers below.

Read `strategy` first (the reads of a run, and why they are sufficient), then `windows` and `fetch` (time ranges small
enough that one response proves completeness), `landmarks` and `ordered` (a first run that reads each page once, if the
server lists the newest contacts first), `sweep` (contacts created or updated since a given time) with `agreement`,
`scrub` (deletions), `pages` and `crosscheck` (the page scan that checks the result), `evidence` (what other answers
show), `checkpoint` (from which a killed run is resumed), and `account`, which connects reading and writing. Never
imports `sinks`.
"""
