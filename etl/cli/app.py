"""The command line: each command parses, calls one function, prints its result as text or as one JSON document.

Data goes to stdout, everything else to stderr. Commands import their dependencies when they run, so `--help` is fast.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Annotated, NoReturn, Protocol, TypeVar

import typer

from etl import __version__
from etl.cli import look
from etl.cli.arguments import AsJson, Assignments, ConfigPath, OneSink, operands, show
from etl.cli.process import complain, fail, hide_rich, leave_no_core
from etl.cli.streams import harden
from etl.commands.checks import Finding, worst
from etl.commands.unexpected import as_error
from etl.display import redacted
from etl.errors import OK, EtlError, Interrupted, UsageError

T = TypeVar("T")
Result_co = TypeVar("Result_co", covariant=True)


class Publishing(Protocol[Result_co]):
    """Work that publishes: a run, or a change of an account."""

    async def execute(self) -> Result_co:
        """Do it and return the result."""

    def end(self, error: EtlError | None) -> Result_co:
        """The result so far, if `error` ended the work."""


app = typer.Typer(
    name="etl",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _show_version(asked: bool) -> None:
    if asked:
        print(f"etl {__version__}")
        raise typer.Exit


@app.callback()
def etl(
    _: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Every contact of an EleAPI account in a warehouse, with proof that none is missing."""


@app.command()
def run(
    config: ConfigPath = None,
    full: Annotated[bool, typer.Option("--full", help="Read everything, not only what changed.")] = False,
    allow_unproven: Annotated[
        bool, typer.Option("--allow-unproven", help="Publish although completeness could not be proven.")
    ] = False,
    allow_shrink: Annotated[
        bool, typer.Option("--allow-shrink", help="Publish although many contacts disappeared.")
    ] = False,
    cluster: Annotated[
        str,
        typer.Option("--cluster", metavar="ADDRESS", help="Read on the workers of a Dask cluster: tcp://HOST:8786."),
    ] = "",
    assignments: Assignments = None,
    as_json: AsJson = False,
) -> int:
    """Export every account; incremental after the first time."""
    from etl.cli.progress import configure, watch  # noqa: PLC0415
    from etl.cli.render import render_run  # noqa: PLC0415
    from etl.commands.result import RunResult  # noqa: PLC0415
    from etl.commands.run import Options, Run  # noqa: PLC0415
    from etl.config import load_named  # noqa: PLC0415

    def finish(result: RunResult) -> int:
        if result.error is not None:
            complain(result.error)
        show(result.document(), render_run(result, config), as_json=as_json)
        return result.exit_code

    configure()
    try:
        work = Run(load_named(config, assignments), Options(full, allow_unproven, allow_shrink), watch, cluster)
    except EtlError as error:
        return finish(RunResult(0.0, error=error))

    return _publish(work, finish)


@app.command()
def plan(
    config: ConfigPath = None,
    full: Annotated[bool, typer.Option("--full", help="Estimate a full run.")] = False,
    assignments: Assignments = None,
    as_json: AsJson = False,
) -> int:
    """Estimate requests and time of the next run; write nothing."""
    from etl.cli.render import render_forecasts  # noqa: PLC0415
    from etl.commands import library  # noqa: PLC0415
    from etl.config import load_named  # noqa: PLC0415

    forecasts = library.plan(load_named(config, assignments), full=full)
    show({"accounts": [f.document() for f in forecasts]}, render_forecasts(forecasts), as_json=as_json)
    return OK


@app.command()
def status(
    config: ConfigPath = None, sink: OneSink = None, assignments: Assignments = None, as_json: AsJson = False
) -> int:
    """Show the last runs: success or error, counts and proof."""
    from etl.cli.render import render_status  # noqa: PLC0415
    from etl.commands.status import read_status  # noqa: PLC0415
    from etl.config import load_named  # noqa: PLC0415

    found = read_status(load_named(config, assignments), sink)
    show(found.document(), render_status(found), as_json=as_json)
    return OK


@app.command()
def sql(
    words: Annotated[list[str], typer.Argument(metavar="[CONFIG] QUERY", help="A SELECT, in the SQL of the sink.")],
    sink: OneSink = None,
    assignments: Assignments = None,
    as_json: AsJson = False,
) -> int:
    """Run a read-only query on the exported contacts."""
    from etl.cli.render import render_table  # noqa: PLC0415
    from etl.commands.sql import ask, rows_of  # noqa: PLC0415
    from etl.config import load_named  # noqa: PLC0415

    config, (query,) = operands(words, 1)
    # In a locale without UTF-8, non-ASCII command-line arguments arrive as raw bytes.
    table = ask(load_named(config, assignments), os.fsencode(query).decode("utf-8", "replace"), sink)
    # Render only one of the two: either takes longer than the query itself.
    show(rows_of(table) if as_json else [], "" if as_json else render_table(table), as_json=as_json)
    return OK


@app.command()
def doctor(config: ConfigPath = None, assignments: Assignments = None, as_json: AsJson = False) -> int:
    """Check token, host, filters and sinks; each problem with a hint."""
    from etl.commands.doctor import examine  # noqa: PLC0415
    from etl.config import load_named  # noqa: PLC0415

    settings = load_named(config, assignments)
    return _print_findings(_in_loop(lambda: examine(settings)), as_json=as_json)


@app.command()
def verify(
    config: ConfigPath = None,
    live: Annotated[int, typer.Option("--live", min=0, help="Also read N random windows again and compare.")] = 0,
    assignments: Assignments = None,
    as_json: AsJson = False,
) -> int:
    """Check every target: hashes, counts, ids, history."""
    from etl.commands import library  # noqa: PLC0415
    from etl.config import load_named  # noqa: PLC0415

    return _print_findings(library.verify(load_named(config, assignments), live=live), as_json=as_json)


@app.command()
def explain(
    words: Annotated[list[str], typer.Argument(metavar="[CONFIG] CONTACT_ID", help="The API's id of the contact.")],
    sink: OneSink = None,
    assignments: Assignments = None,
    as_json: AsJson = False,
) -> int:
    """Show everything known about one contact.

    Why it is, or is not, in `contacts`; the run, window and request that last read it; its versions.
    """
    from etl.cli.render import render_explanation  # noqa: PLC0415
    from etl.commands.explain import explain_contact  # noqa: PLC0415
    from etl.config import load_named  # noqa: PLC0415

    config, (contact_id,) = operands(words, 1)
    explanation = explain_contact(load_named(config, assignments), contact_id, sink)
    show(explanation.document(), render_explanation(explanation), as_json=as_json)
    return OK


@app.command()
def copy(
    words: Annotated[list[str], typer.Argument(metavar="[CONFIG] FROM TO", help="The names of two sinks.")],
    assignments: Assignments = None,
    as_json: AsJson = False,
) -> int:
    """Fill a new sink from an existing one, history included, without the API."""
    from etl.cli.progress import configure  # noqa: PLC0415
    from etl.cli.render import render_copy  # noqa: PLC0415
    from etl.commands.copy import copy_sink  # noqa: PLC0415
    from etl.config import load_named  # noqa: PLC0415

    configure()
    config, (source, target) = operands(words, 2)
    copied = copy_sink(load_named(config, assignments), source, target)
    show(copied.document(), render_copy(copied), as_json=as_json)
    return OK


app.command(context_settings={"ignore_unknown_options": True})(look.diff)  # -1 is a run, not an option
app.command()(look.report)
app.command()(look.explore)

account = typer.Typer(
    help="Rename or drop an account in every target; history stays.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(account, name="account")


@account.command()
def rename(
    words: Annotated[
        list[str], typer.Argument(metavar="[CONFIG] OLD NEW", help="The account's name, and the new name.")
    ],
    assignments: Assignments = None,
    as_json: AsJson = False,
) -> int:
    """Rename an account in every target; its contacts, state and strikes continue under the new name."""
    config, (name, new) = operands(words, 2)
    return _change(config, assignments, name, new, as_json=as_json)


@account.command()
def drop(
    words: Annotated[list[str], typer.Argument(metavar="[CONFIG] NAME", help="The account's name.")],
    assignments: Assignments = None,
    as_json: AsJson = False,
) -> int:
    """Remove an account's contacts from every target, without confirmation; their versions stay in the history."""
    config, (name,) = operands(words, 1)
    return _change(config, assignments, name, None, as_json=as_json)


@app.command()
def columns(as_json: AsJson = False) -> int:
    """Document every column of `contacts`."""
    from etl.cli.render import render_columns  # noqa: PLC0415
    from etl.schema import CONTACTS, describe  # noqa: PLC0415

    rows = [describe(column) for column in CONTACTS]
    show(rows, render_columns(rows), as_json=as_json)
    return OK


@app.command()
def docs(
    topic: Annotated[str | None, typer.Argument(metavar="[TOPIC]", help="A page; left out: the list of pages.")] = None,
    as_json: AsJson = False,
) -> int:
    """Read the documentation: the list of topics, or the page on one of them."""
    from etl.commands.docs import read_docs  # noqa: PLC0415

    document, text = read_docs(topic)
    show(document, text, as_json=as_json)
    return OK


@app.command()
def sandbox(
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on loopback; 0 takes a free one.")] = 8080,
    contacts: Annotated[int, typer.Option(help="Contacts at the start.")] = 2000,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any setting of [sandbox]; may be repeated.")
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Serve a simulated account on this machine until interrupted."""
    from etl.config import sandbox_settings  # noqa: PLC0415
    from etl.sandbox.server import run as serve  # noqa: PLC0415

    settings = sandbox_settings([f"contacts={contacts}", *(assignments or ())])

    def ready(url: str) -> None:
        text = f"sandbox with {settings.contacts} contacts at {url}, token {settings.token}"
        show({"url": url, "token": settings.token}, text, as_json=as_json)

    try:
        serve(settings, port, ready)
    except OSError as error:
        raise UsageError(f"cannot listen on port {port}: {error.strerror}", hint="Name another --port.") from None
    except ValueError as error:
        raise UsageError(str(error), where="sandbox") from None
    return OK


def _change(config: Path | None, assignments: list[str] | None, name: str, new: str | None, *, as_json: bool) -> int:
    """Rename or drop an account; a signal stops it until the first target has published, as in a run."""
    from etl.cli.progress import configure  # noqa: PLC0415
    from etl.cli.render import render_change  # noqa: PLC0415
    from etl.commands.accounts import Change  # noqa: PLC0415
    from etl.commands.result import ChangeResult  # noqa: PLC0415
    from etl.config import load_named  # noqa: PLC0415

    def finish(result: ChangeResult) -> int:
        if result.error is not None:
            complain(result.error)
        show(result.document(), render_change(result), as_json=as_json)
        return result.exit_code

    configure()
    try:
        work = Change(load_named(config, assignments), name, new)
    except EtlError as error:
        return finish(ChangeResult(name, new, error=error))

    return _publish(work, finish)


def _publish(work: Publishing[T], finish: Callable[[T], int]) -> int:
    """Do the work until it ends or a signal stops it; `finish` reports its result and returns the exit code."""
    from etl.cli.signals import until_stopped  # noqa: PLC0415

    def stopped(error: EtlError) -> int:
        return finish(work.end(error))

    try:
        result = _in_loop(lambda: until_stopped(work.execute, stopped))
    except Exception as caught:  # noqa: BLE001 - a bug, too, is an attempt that failed
        unexpected = caught
    else:
        return finish(result)
    return stopped(as_error(unexpected))


def main() -> NoReturn:
    """The console script: runs a command and exits with its code."""
    os.umask(0o077)
    leave_no_core()
    hide_rich()
    harden()
    # Looking for plugins of other packages takes 10 ms. Read at the import of pydantic.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    # Arrow's own allocator retains memory freed by other threads: 30 MB on top of the merge. Read at Arrow's import.
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    # Dask's client would print the traceback of each lost connection next to our line. Read at its import.
    os.environ.setdefault("DASK_LOGGING", '{"distributed": "critical", "distributed.client": "critical"}')
    arguments = sys.argv[1:]
    sys.exit(_guarded(lambda: _dispatch(arguments), as_json="--json" in arguments))


def _dispatch(arguments: Sequence[str]) -> int:
    try:
        return app(list(arguments), standalone_mode=False) or OK
    except typer.TyperException as error:
        if not arguments:
            print(error.format_message(), file=sys.stderr)
            return UsageError.exit_code
        # Every argument that may be a token is redacted.
        message, words = error.format_message(), {part for one in arguments for part in (one, *one.split("=", 1))}
        for word in sorted(words, key=len, reverse=True):
            for spelled in (word, repr(word)[1:-1]):
                message = message.replace(spelled, redacted(word)) if redacted(word) != word else message
        raise UsageError(message, where="command line", hint="See etl --help.") from None


def _guarded(command: Callable[[], int], *, as_json: bool) -> int:
    """Turn every outcome of a command into an exit code, with one clear message and no traceback."""
    try:
        return command()
    except EtlError as error:
        return fail(error, as_json=as_json)
    except KeyboardInterrupt:
        return Interrupted.exit_code
    except Exception as caught:  # noqa: BLE001 - the last resort: a bug is one line and exit 70, no traceback
        bug = caught
    return _guarded(lambda: fail(as_error(bug), as_json=as_json), as_json=as_json)


def _in_loop(main: Callable[[], Awaitable[T]]) -> T:
    import anyio  # noqa: PLC0415

    from etl.storage.preflight import check_handles  # noqa: PLC0415

    check_handles()
    return anyio.run(main)


def _print_findings(findings: Sequence[Finding], *, as_json: bool) -> int:
    from etl.cli.render import render_findings  # noqa: PLC0415

    code = worst(findings)
    document = {"exit": code, "checks": [finding.document() for finding in findings]}
    show(document, render_findings(findings), as_json=as_json)
    return code
