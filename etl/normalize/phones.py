"""E.164 phone numbers."""
from __future__ import annotations
import pyarrow as pa


def e164(prefixes: pa.Array, numbers: pa.Array) -> pa.Array:
    return pa.nulls(len(prefixes), pa.string())
