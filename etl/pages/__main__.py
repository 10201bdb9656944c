"""Renders a report: figures as JSON on stdin, HTML on stdout. See `process`."""

from __future__ import annotations

import sys

import msgspec

from etl.pages.figures import Figures
from etl.pages.sections import report

if __name__ == "__main__":
    found = msgspec.json.decode(sys.stdin.buffer.read(), type=Figures)
    sys.stdout.buffer.write(report(found).encode())
