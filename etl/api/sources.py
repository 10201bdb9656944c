"""The sources of the accounts: the configured addresses, or the embedded sandbox in their place."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial

from pydantic import SecretStr

from etl.api.cap import Cap
from etl.api.client import Client, Quota
from etl.api.http import Credential, connect
from etl.api.rate import Pace
from etl.api.route import route
from etl.config import Config, Extract, Http, read_token
from etl.config.accounts import SHOWN_PROBLEMS
from etl.errors import UsageError
from etl.sandbox.settings import Settings


@dataclass(frozen=True, slots=True)
class Source:
    """The address and the token of one account."""

    account: str
    base_url: str
    credential: Credential
    quota: Quota | None = None
    """The limit from `extract.requests_per_second`, shared by all accounts that use the token."""


@asynccontextmanager
async def reach(source: Source, extract: Extract, http: Http, pace: Pace | None = None) -> AsyncIterator[Client]:
    """A client of `source`, open until the block ends; `pace` is the state learned from the server before."""
    credential, concurrency = source.credential, extract.concurrency
    async with connect(source.base_url, credential, http, concurrency=concurrency) as transport:
        yield Client(
            transport,
            account=source.account,
            concurrency=concurrency,
            pace=pace,
            quota=source.quota,
            renew=credential.renew,
        )


@asynccontextmanager
async def sources(config: Config) -> AsyncIterator[tuple[Source, ...]]:
    """Every account with its address and token; a sandbox runs until the block ends. Raises UsageError."""
    accounts = config.read_accounts
    named: dict[str, Source] = {}
    missing: list[UsageError] = []
    for account in accounts:
        if account.base_url:
            reread = partial(read_token, account)
            try:
                named[account.name] = Source(account.name, account.base_url, Credential(reread(), reread))
            except UsageError as error:
                missing.append(error)
    _refuse_missing(missing)
    for base_url in {source.base_url for source in named.values()}:
        # Report route errors before anything is locked or created.
        route(base_url, config.http)
    if len(named) == len(accounts):
        yield _capped(named.values(), config.extract.requests_per_second)
        return
    # Import the server only for a configuration with a [sandbox] section.
    from etl.sandbox.server import serve  # noqa: PLC0415

    settings = config.sandbox or Settings()
    credential = Credential(SecretStr(settings.token))
    try:
        async with serve(settings) as sandbox:
            found = [named.get(account.name) or Source(account.name, sandbox.url, credential) for account in accounts]
            yield _capped(found, config.extract.requests_per_second)
    except ValueError as error:
        raise UsageError(str(error), where="[sandbox]") from None


def _refuse_missing(errors: Sequence[UsageError]) -> None:
    """Raise all errors as one: of hundreds of accounts, several tokens may be missing."""
    if len(errors) == 1:
        raise errors[0]
    if errors:
        rest = len(errors) - SHOWN_PROBLEMS
        shown = [f"{error.where}: {error.message}" for error in errors[:SHOWN_PROBLEMS]]
        message = "; ".join([*shown, *([f"and {rest} more"] if rest > 0 else [])])
        raise UsageError(message, where=f"{len(errors)} accounts", hint=errors[0].hint)


def _capped(found: Iterable[Source], per_second: float | None) -> tuple[Source, ...]:
    """The sources with one quota per token; they keep it when the token is renewed during a run."""
    if per_second is None:
        return tuple(found)
    quotas: defaultdict[SecretStr, Quota] = defaultdict(lambda: Quota(Cap(per_second)))
    return tuple(replace(source, quota=quotas[source.credential.token]) for source in found)
