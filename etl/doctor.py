"""The doctor: what could keep a run from succeeding, looked at one by one, each finding with its mend."""

from __future__ import annotations

from collections.abc import AsyncIterator
from time import time

from etl.capabilities import Capabilities
from etl.config import Config
from etl.errors import EtlError, TargetLocked, UnprovenError
from etl.findings import Finding, failure
from etl.probe import probe
from etl.sinks import Sink
from etl.sources import Source, reach, sources
from etl.staging import Lock
from etl.targets import sinks


async def examine(config: Config) -> list[Finding]:
    """Look at sinks, tokens and servers; an error becomes a finding."""
    findings = [_sink(sink) for sink in sinks(config)]
    try:
        async with sources(config) as found:
            findings.append(Finding("token", "configuration", f"{len(found)} account(s) with a token"))
            for source in found:
                findings.extend([finding async for finding in _server(config, source)])
    except EtlError as error:
        findings.append(failure("token", error))
    return findings


def _sink(sink: Sink) -> Finding:
    try:
        with Lock(sink.path):
            state = sink.open()
    except TargetLocked as busy:
        # Opening collects what killed runs prepared: while a run is at work, that would be what it prepares.
        return Finding("sink", str(sink.path), busy.message)
    except EtlError as error:
        return failure("sink", error, where=str(sink.path))
    held = f"state {state.seq}" if state.seq else "ready for a first run"
    return Finding("sink", str(sink.path), held)


async def _server(config: Config, source: Source) -> AsyncIterator[Finding]:
    try:
        async with reach(source, config.extract, config.http) as client:
            found = await probe(client, local_now=int(time() * 1000))
    except EtlError as error:
        yield failure("server", error, where=source.base_url)
        return
    yield Finding("server", source.base_url, f"answers; {client.sent} requests sent")
    yield _filters(source, found)


def _filters(source: Source, found: Capabilities) -> Finding:
    where = f"account {source.account}"
    if not found.windows:
        return Finding(
            "filters",
            where,
            "the server does not honour its time filters: a run cannot prove that nothing is missing",
            "Ask the vendor, or accept runs without proof with --allow-unproven.",
            UnprovenError.exit_code,
        )
    size = f"pages of {'' if found.page_size_agreed else 'at least '}{found.page_size}"
    return Finding("filters", where, f"time filters are honoured; {size}; the two lists: {found.lists}")
