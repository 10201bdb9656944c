"""The command line: parse, call one function of a command, print what it returns. May import everything below.

Read `app` first. `process` is how the program starts, fails and ends, `signals` how a run is stopped, `streams` its
stdout and stderr, `progress` what a run shows while it goes.
"""
