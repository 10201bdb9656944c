"""Fuzz inputs: corpus entries that are cut, flipped, doubled, crossed and mixed with tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from hypothesis import strategies as st

CORPUS = Path(__file__).parent / "corpus"

TOKENS = (
    *b'{ } [ ] , : " \\ \\u0000 \\ud800 \\udc00 \\ud83d\\ude00 null true false NaN Infinity -0 1e400 1.5'.split(),
    *b'9223372036854775808 "_id" "data" "data":[] "success":false "code":401 "total":-1 "createdAt"'.split(),
    *b'"profile":{} "tags":[null] "__v":1.0 [[[[[[ {"a": "seq" "format":9 "seal" "state":{} "previous"'.split(),
    *b"[extract] [[accounts]] = ' # [sinks.duckdb] 0000-00-00 2026-02-30T25:61:61Z 9999-12-31T23:59:59-01:00".split(),
    *(b"", b" ", b"\n", b"\0", b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\xc3", b"\r", b"9" * 400, b"[" * 2000),
)


def entries(reader: str) -> Sequence[bytes]:
    """The corpus of a reader, in order of file names."""
    return [path.read_bytes() for path in sorted((CORPUS / reader).iterdir())]


def keep(reader: str, data: bytes) -> Path:
    """Add an input to the corpus."""
    path = CORPUS / reader / f"found-{hashlib.sha256(data).hexdigest()[:12]}"
    path.write_bytes(data)
    return path


@st.composite
def mutated(draw: st.DrawFn, reader: str) -> bytes:
    """A corpus entry after a few changes."""
    known = entries(reader)
    data = draw(st.sampled_from(known))
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.sampled_from((0, 1, 2, 5, 20, 10**6))))
        piece = data[start:end]
        match draw(st.sampled_from(("cut", "flip", "double", "token", "cross"))):
            case "cut":
                piece = b""
            case "flip":
                piece = bytes(byte ^ 1 << draw(st.integers(0, 7)) for byte in piece[:3]) + piece[3:]
            case "double":
                piece *= 2
            case "token":
                piece = draw(st.sampled_from(TOKENS))
            case "cross":
                other = draw(st.sampled_from(known))
                piece = other[draw(st.integers(0, len(other))) :]
        data = (data[:start] + piece + data[end:])[:20_000]
    return data
