"""The command line: parse, call one function of a command, print its result. May import everything below.

Read `app` first. `process` handles start, failure and exit, `signals` stops a run, `streams` wraps stdout and stderr,
`progress` reports the progress of a run.
"""
