"""Events, named `noun.verb`, with fields: counts, times, and names from the configuration, never a token or contact.

They go to the logger `etl` of the standard library, which is silent until a program adds a handler.
"""

from __future__ import annotations

import logging

import structlog

logger = logging.getLogger("etl")
logger.addHandler(logging.NullHandler())

log: structlog.stdlib.BoundLogger = structlog.wrap_logger(
    logger,
    processors=[
        structlog.stdlib.filter_by_level,
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
    ],
    wrapper_class=structlog.stdlib.BoundLogger,
)
