"""The command line: parse, call one function of a command, print its result. May import everything below.

Read `app` first, with `look` (the commands that show what targets hold) and `arguments` (what commands share), then
`render` (the layout of every result). `process` handles start and failure, `signals` stops a
run, `streams` wraps stdout and stderr, `progress` reports the progress of a run, on a terminal as the table in `rows`.
"""
