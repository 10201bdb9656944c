"""Our tables in a PostgreSQL schema: their types, indexes, comments and function, and the checks that they are ours.

Maps and lists of notes are `jsonb`. It sorts the keys of an object, but the order of `attributes` is part of a
contact's fingerprint: where it differs, it is kept in `etl_attribute_orders`, by fingerprint. `extra` and `detail` are
`json`, which keeps the text (`jsonb` writes out 1e400). No I/O.
"""

# ruff: noqa: S608 - SQL is built from the column table, our own names and quoted literals.

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from etl import schema
from etl.errors import TargetCorrupt
from etl.sinks import tables
from etl.storage import duck

ORDERS: tables.Columns = (("row_hash", "VARCHAR"), ("keys", "VARCHAR[]"))
"""The keys of `attributes` as the API sent them, by the fingerprint of the contacts that have them."""

TABLES: dict[str, tables.Columns] = {
    **tables.PUBLIC,
    **{f"etl_{name}": columns for name, columns in tables.INTERNAL.items()},
    "etl_attribute_orders": ORDERS,
}
"""Our tables by name; those that users need not look at begin with `etl_`."""

_TYPES = {
    "VARCHAR": "text",
    "VARCHAR[]": "text[]",
    "BOOLEAN": "boolean",
    "TINYINT": "smallint",
    "SMALLINT": "smallint",
    "INTEGER": "integer",
    "BIGINT": "bigint",
    "DOUBLE": "double precision",
    "TIMESTAMP WITH TIME ZONE": "timestamp with time zone",
    "JSON": "json",
    schema.SQL[schema.Kind.ATTRIBUTES]: "jsonb",
    schema.SQL[schema.Kind.NOTES]: "jsonb",
}
"""The server's type for each type of the engine, as `format_type` spells it."""

_KEYS = {
    "contacts": "account, contact_id",
    "contact_versions": "account, contact_id, seq",
    "runs": "seq, account",
    "etl_strikes": "account, contact_id",
    "etl_manifests": "seq",
    "etl_attribute_orders": "row_hash",
}
_INDEXES = (
    ("contacts", "last_seen_at"),
    ("contacts", "account, created_at"),
    ("contacts", "seq"),
    ("contact_versions", "seq"),
    ("rejects", "account, contact_id"),
    ("etl_windows", "account, seq"),
)
"""For the merge, for questions about activity, and for loads that take what is newer than a `seq`."""

_COMMENTS = {
    "contacts": "one row per live contact",
    "contact_versions": "every version of a contact ever published; op is upsert or delete",
    "runs": "one row per account and published run, with its proof",
    "rejects": "each contact that could not be kept, with its reason and its raw JSON",
    "etl_strikes": "state of etl: contacts that were absent once, or twice and therefore deleted",
    "etl_windows": "state of etl: the ranges that runs have read completely",
    "etl_manifests": "state of etl: the record of each publication",
    "etl_attribute_orders": "state of etl: keys of attributes in the order of the API, where jsonb has another one",
}
_COLUMN_COMMENTS = {
    ("contacts", schema.CONTACTS),
    ("contact_versions", schema.CONTACTS),
    ("rejects", schema.REJECTS),
}

COLUMNS = """
SELECT c.relname::text, a.attname::text, CASE WHEN c.relkind IN ('r', 'p') THEN format_type(a.atttypid, NULL) END
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
WHERE n.nspname = $1 AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
"""
"""Query for the columns of all relations of a schema, with their types; null for those that are not tables."""

Held = Mapping[str, Mapping[str, str | None]]
"""The columns of each relation in a schema, with their types."""


def held(rows: Iterable[Sequence[str]]) -> Held:
    """The result of the query `COLUMNS`."""
    found: dict[str, dict[str, str | None]] = {}
    for table, column, kind in rows:
        found.setdefault(table, {})[column] = kind
    return found


def sql_type(kind: str) -> str:
    """The server's type for a type of the engine."""
    return _TYPES[kind]


def create(home: str) -> list[str]:
    """The statements that create our tables, indexes, comments and function in the schema `home`, which exists."""
    space = duck.quoted(home)
    statements = list[str]()
    for table, columns in TABLES.items():
        body = [f"{duck.quoted(name)} {_TYPES[kind]}" for name, kind in columns]
        body += [f"PRIMARY KEY ({_KEYS[table]})"] if table in _KEYS else []
        statements.append(f"CREATE TABLE {space}.{table} ({', '.join(body)})")
        statements.append(f"COMMENT ON TABLE {space}.{table} IS {duck.literal(_COMMENTS[table])}")
    statements += [f"CREATE INDEX ON {space}.{table} ({columns})" for table, columns in _INDEXES]
    statements += [
        f"COMMENT ON COLUMN {space}.{table}.{duck.quoted(each.name)} IS "
        + duck.literal(f"{each.meaning} [{each.privacy.value}]")
        for table, columns in _COLUMN_COMMENTS
        for each in columns
    ]
    return [*statements, *_as_of(space)]


def _as_of(space: str) -> tuple[str, str]:
    """`contacts_as_of`, as `tables.AS_OF` defines it for the engine."""
    returned = ", ".join(f"{duck.quoted(name)} {_TYPES[kind]}" for name, kind in tables.CONTACTS)
    names = duck.listed(schema.column_names(), "v")
    return (
        f"""
        CREATE FUNCTION {space}.contacts_as_of(instant timestamptz) RETURNS TABLE ({returned})
        LANGUAGE sql STABLE AS $$
            WITH by_then AS (
                SELECT r.account, max(r.seq) AS upto FROM {space}.runs r WHERE r.observed_at <= $1 GROUP BY r.account
            ), latest AS (
                SELECT v.account, v.contact_id, max(v.seq) AS seq
                FROM {space}.contact_versions v JOIN by_then b ON v.account = b.account AND v.seq <= b.upto
                GROUP BY v.account, v.contact_id
            )
            SELECT {names} FROM {space}.contact_versions v JOIN latest l
            ON v.account = l.account AND v.contact_id = l.contact_id AND v.seq = l.seq WHERE v.op <> 'delete'
        $$
        """,
        f"COMMENT ON FUNCTION {space}.contacts_as_of(timestamptz) IS "
        + duck.literal("the contacts as of the last run up to an instant"),
    )


def refuse_foreign(found: Held, where: str) -> None:
    """Raise `TargetCorrupt` if a schema that no run has published into uses the name of one of our tables."""
    for table in TABLES:
        if table in found:
            hint = f"Rename it (ALTER TABLE {table} RENAME TO ...) or choose another schema."
            raise TargetCorrupt(f"the schema has a table {table} that is not ours", where=where, hint=hint)


def refuse_altered(found: Held, where: str) -> None:
    """Raise `TargetCorrupt` if one of our tables or columns is missing or of another type."""
    for table, columns in TABLES.items():
        own = found.get(table, {})
        if not own:
            raise TargetCorrupt(f"our table {table} is missing", where=where)
        for name, kind in columns:
            if name not in own:
                what, change = "is missing", f"ADD COLUMN {duck.quoted(name)} {_TYPES[kind]}"
            elif own[name] is None:
                raise TargetCorrupt(f"{table} is a view, not our table", where=where)
            elif own[name] != _TYPES[kind]:
                what, change = f"is {own[name]}, not {_TYPES[kind]}", f"ALTER COLUMN {name} TYPE {_TYPES[kind]}"
            else:
                continue
            raise TargetCorrupt(
                f"the column {name} of {table} {what}", where=where, hint=f"Restore it: ALTER TABLE {table} {change}."
            )
