"""The doctor (`etl doctor`): checks everything that could make a run fail, each finding with its hint."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from importlib import metadata
from time import time

from etl.api.request import checked_filters
from etl.api.sources import Source, reach, sources
from etl.commands import outputs
from etl.commands.checks import Finding, failure
from etl.commands.each import each_account
from etl.commands.result import unconfigured_hint, unconfigured_line
from etl.config import Config
from etl.errors import EtlError, TargetLocked, UnprovenError, UsageError
from etl.extract.probe import probe
from etl.sinks import Sink
from etl.sinks.checks import refuse_other_filters
from etl.sinks.targets import sinks, unconfigured
from etl.storage.lock import Lock

PACKAGE = "etl"
_FLOOR = re.compile(r"([\w.-]+)>=([\d.]+)")


async def examine(config: Config) -> list[Finding]:
    """Check libraries, sinks, filters, outputs, tokens and servers; an error becomes a finding."""
    findings = [_libraries(), *(finding for sink in sinks(config) for finding in _sink(config, sink))]
    findings += [Finding("config", "configuration", hint) for hint in config.deprecated]
    for check, examined in (
        ("filters", partial(checked_filters, config.extract.filters)),
        ("outputs", partial(outputs.check, config)),
    ):
        try:
            examined()
        except UsageError as error:
            findings.append(failure(check, error))
    try:
        async with sources(config) as found:
            findings.append(Finding("token", "configuration", f"{len(found)} account(s) with a token"))
            probed = await each_account(found, config.extract.accounts_at_once, partial(_server, config))
            for source, done in zip(found, probed, strict=True):
                if isinstance(done, EtlError):
                    findings.append(failure("server", done, where=source.base_url))
                else:
                    findings += done
    except EtlError as error:
        findings.append(failure("token", error))
    return findings


async def _server(config: Config, source: Source) -> list[Finding]:
    """Check that the server answers, and that it honours its time filters."""
    async with reach(source, config.extract, config.http) as client:
        server = await probe(client, local_now=int(time() * 1000), compare_lists=True)
    answers = Finding("server", source.base_url, f"answers; {client.sent} requests sent")
    where = f"account {source.account}"
    if server.windows:
        size = f"pages of {'' if server.page_size_agreed else 'at least '}{server.page_size}"
        detail = f"time filters are honoured; {size}; the two lists: {server.lists}"
        return [answers, Finding("filters", where, detail)]
    detail = "the server does not honour its time filters: a run cannot prove that nothing is missing"
    hint = "Ask the vendor, or accept runs without proof with --allow-unproven."
    return [answers, Finding("filters", where, detail, hint, UnprovenError.exit_code)]


def _libraries() -> Finding:
    """Check that every library is as new as our metadata requires (P24); it has only plain lower bounds.

    A sink says by itself that its extra is missing.
    """
    try:
        needed = [line for line in metadata.requires(PACKAGE) or () if "extra ==" not in line]
        floors = [found.groups() for line in needed if (found := _FLOOR.match(line))]
    except metadata.PackageNotFoundError:
        return Finding("packages", PACKAGE, "it is not installed, so its requirements are not known")
    outdated = []
    for name, floor in floors:
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            outdated.append(f"{name} is not installed")
            continue
        if _numbers(version) < _numbers(floor.removesuffix(".0")):
            outdated.append(f"{name} {version} is older than {floor}")
    if outdated:
        hint = "Install them again (make setup)."
        return Finding("packages", PACKAGE, "; ".join(outdated), hint, UsageError.exit_code)
    return Finding("packages", PACKAGE, f"{len(floors)} libraries are installed, and none is too old")


def _numbers(version: str) -> list[int]:
    """The numbers in a version, in order; a pre-release counts as its release."""
    return [int(number) for number in re.findall(r"\d+", version)]


def _sink(config: Config, sink: Sink) -> Iterator[Finding]:
    """Check the target, and find accounts in it that the configuration does not name."""
    try:
        with Lock(sink.path):
            state = sink.open()
        refuse_other_filters(sink, state, config.extract.filters)
    except TargetLocked as busy:
        # Opening removes leftovers of killed runs; during a run, it would remove the files of that run.
        yield Finding("sink", sink.location, busy.message)
        return
    except EtlError as error:
        yield failure("sink", error, where=sink.location)
        return
    held = f"state {state.seq}" if state.seq else "ready for a first run"
    yield Finding("sink", sink.location, held)
    for name, contacts in unconfigured(config, [state]).items():
        yield Finding("account", sink.location, unconfigured_line(name, contacts), unconfigured_hint(name))
