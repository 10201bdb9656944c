"""Speed and memory, compared with the bare pipeline: `python -m tests.bench` (`make bench`).

Every figure is of a whole process, cold start included, so no job runs inside the process that measures.
LOAD uses no server: millions of contacts take too long over HTTP, so `tests.bench.loads` generates them.
"""
