"""The guards: checks that refuse to publish results that look wrong. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from etl.errors import GuardError, UnprovenError
from etl.model import Merged, RunRecord

FEWEST = 100
"""Losing this many contacts or fewer never trips the guard, however small the account."""
ANOTHER_ACCOUNT = 3
"""If at least this many contacts are replaced by new ones, it looks like another account; fewer may be chance."""
SHARED = 0.1
"""The maximum share of its contacts that one account has in common with another, such as those of a template."""


def check_rejects(record: RunRecord, previous: int, share: float) -> None:
    """Raise GuardError if more than `share` of the account's contacts were rejected.

    The share is of the contacts received, or of the `previous` ones if those are more: otherwise incremental runs,
    which receive few, would fail every night on the few rejects that a full run accepted.
    """
    rejected, contacts = record.counts.rejected, max(record.counts.received, previous)
    if rejected > share * contacts:
        raise GuardError(
            f"{rejected} of {contacts} contacts could not be kept, more than guard.max_reject_share ({share:g})",
            where=f"account {record.account}",
            hint="Nothing of this account was published; look at what changed in the API, or raise the share.",
        )


def check_proof(record: RunRecord, *, allow_unproven: bool) -> None:
    """Raise UnprovenError if something is unproven and that is not allowed; a filtered export has no proof."""
    if record.proof.holds or allow_unproven or record.mode == "filtered":
        return
    first, *more = record.proof.unproven
    rest = f" (and {len(more)} more)" if more else ""
    raise UnprovenError(
        f"it cannot be proven that nothing is missing: {first}{rest}", where=f"account {record.account}"
    )


def check_not_empty(record: RunRecord, previous: int) -> None:
    """Raise GuardError if an account that had contacts shows none, as happens during maintenance (A42)."""
    if previous and record.mode != "filtered" and record.counts.received == 0:
        raise GuardError(
            f"the account shows no contact, but had {previous}",
            where=f"account {record.account}",
            hint="Nothing of this account was published; look at the account, then run with --allow-shrink.",
        )


def check_identity(record: RunRecord, last: RunRecord | None) -> None:
    """Raise GuardError if the contacts have another customer or agency than those last published under this name."""
    if last is None or record.mode == "filtered":
        return
    before, now = _identity(last), _identity(record)
    for name, field in (("customers", "_customer"), ("agencies", "_agency")):
        old, new = before.get(name), now.get(name)
        if old and new and not set(old) & set(new):
            raise GuardError(
                f"this is another account: every contact received has another {field} than those published before",
                where=f"account {record.account}, last read from {before.get('base_url')}, now from {now['base_url']}",
                hint="Nothing of this account was published. Restore its base_url and token, or give the new account"
                f" another name; `etl account drop {record.account}` removes the old contacts.",
            )


def _identity(record: RunRecord) -> Mapping[str, Any]:
    identity = record.detail.get("identity")
    return identity if isinstance(identity, Mapping) else {}


def check_shrink(
    records: Mapping[str, RunRecord], merged: Merged, share: float, *, fewest: int = FEWEST
) -> dict[str, GuardError]:
    """The accounts that would lose or strike more than max(`fewest`, `share`) of their contacts, with the errors."""
    errors = {}
    for account, counts in merged.counts.items():
        losing, record = counts.deleted + merged.struck.get(account, 0), records[account]
        previous = merged.previous.get(account, 0)
        if record.mode == "filtered":
            continue
        kept = previous - losing
        if previous >= ANOTHER_ACCOUNT and kept <= SHARED * previous and kept < SHARED * counts.new:
            errors[account] = GuardError(
                f"this looks like another account: {counts.new} new contacts, and only {kept} of {previous} are left",
                where=f"account {account}",
                hint="Nothing of this account was published. Restore its base_url and token, or give the new account"
                f" another name: `etl account drop {account}` removes the old contacts. If the contacts of this account"
                " were replaced, run with --allow-shrink.",
            )
        elif losing > max(fewest, share * previous):
            look, why = record.detail.get("escalated"), ""
            if isinstance(look, Mapping):
                why = (
                    f"; everything was read, because {look['absent']} of {look['looked']} checked contacts were missing"
                )
            errors[account] = GuardError(
                f"{losing} of {previous} contacts are gone, more than guard.max_shrink_share ({share:g}) allows{why}",
                where=f"account {account}",
                hint="Nothing of this account was published. If the token, its rights or the plan changed, restore"
                " them; if the contacts were really deleted, run with --allow-shrink.",
            )
    return errors
