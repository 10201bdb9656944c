"""Where the accounts are read: the addresses of the configuration, or the embedded sandbox standing in for them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from pydantic import SecretStr

from etl.account import Source
from etl.config import Account, Config, read_token
from etl.errors import UsageError
from etl.sandbox.settings import Settings


@asynccontextmanager
async def sources(config: Config) -> AsyncIterator[tuple[Source, ...]]:
    """Every account with its address and token; a sandbox lives as long as the block."""
    accounts = config.accounts or (Account(name="sandbox"),)
    tokens = {account.name: read_token(account) for account in accounts if account.base_url}
    if len(tokens) == len(accounts):
        yield tuple(Source(a.name, a.base_url, tokens[a.name]) for a in accounts)
        return
    async with _embedded(config) as standin:
        yield tuple(
            Source(a.name, a.base_url, tokens[a.name]) if a.base_url else Source(a.name, *standin) for a in accounts
        )


@asynccontextmanager
async def _embedded(config: Config) -> AsyncIterator[tuple[str, SecretStr]]:
    # Only a configuration with a [sandbox] section pays for the server.
    from etl.sandbox.server import serve  # noqa: PLC0415

    settings = config.sandbox or Settings()
    try:
        async with serve(settings) as sandbox:
            yield sandbox.url, SecretStr(settings.token)
    except ValueError as error:
        raise UsageError(str(error), where="[sandbox]") from None
