"""Speed and memory, measured side by side with the bare pipeline: `python -m tests.bench` (`make bench`).

Every figure is of a whole process, cold start included, so nothing here runs inside the process that measures.
LOAD does without a server: millions of contacts take too long over HTTP, so `tests.bench.loads` makes them up.
"""
