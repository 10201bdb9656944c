"""The guards: results that look so wrong that they are better not published. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from etl.errors import GuardError, UnprovenError
from etl.model import Merged, RunRecord

FEWEST = 100
"""Losing this many contacts or fewer never trips the guard, however small the account."""


def check_rejects(record: RunRecord, previous: int, share: float) -> None:
    """Raise GuardError when more than `share` of the account's contacts could not be kept.

    An account has as many as were received, or the `previous` ones where an incremental run receives fewer: it must not
    stop, that night and every other, at the few that a full run has borne.
    """
    rejected, contacts = record.counts.rejected, max(record.counts.received, previous)
    if rejected > share * contacts:
        raise GuardError(
            f"{rejected} of {contacts} contacts could not be kept, more than guard.max_reject_share ({share:g})",
            where=f"account {record.account}",
            mend="Nothing of this account was published; look at what changed in the API, or raise the share.",
        )


def check_proof(record: RunRecord, *, allow_unproven: bool) -> None:
    """Raise UnprovenError when something is unproven and that is not allowed; a filtered export has no proof."""
    if record.proof.holds or allow_unproven or record.mode == "filtered":
        return
    first, *more = record.proof.unproven
    rest = f" (and {len(more)} more)" if more else ""
    raise UnprovenError(
        f"it cannot be proven that nothing is missing: {first}{rest}", where=f"account {record.account}"
    )


def check_not_empty(record: RunRecord, previous: int) -> None:
    """Raise GuardError when an account that had contacts shows none: maintenance looks like that (FAULTS.md A42)."""
    if previous and record.mode != "filtered" and record.counts.received == 0:
        raise GuardError(
            f"the account shows no contact, and had {previous}",
            where=f"account {record.account}",
            mend="Nothing of this account was published; look at the account, then run with --allow-shrink.",
        )


def check_shrink(modes: Mapping[str, str], merged: Merged, share: float) -> dict[str, GuardError]:
    """The accounts that would lose or strike more than max(100, `share`) of their contacts, each with its error."""
    errors = {}
    for account, counts in merged.counts.items():
        losing = counts.deleted + merged.struck.get(account, 0)
        previous = merged.previous.get(account, 0)
        if modes[account] != "filtered" and losing > max(FEWEST, share * previous):
            errors[account] = GuardError(
                f"{losing} of {previous} contacts are gone, more than guard.max_shrink_share ({share:g}) allows",
                where=f"account {account}",
                mend="Nothing of this account was published; look at the account, then run with --allow-shrink.",
            )
    return errors
