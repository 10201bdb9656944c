"""Every contact of an EleAPI account in a warehouse, with proof that none is missing.

    config = etl.load_config("etl.toml")
    etl.run(config).raise_for_error()
    with etl.connect(config) as connection:
        print(connection.sql("select count(*) from contacts"))

See `etl.commands.library` for the functions, `etl.errors` for the exceptions. Everything is imported on first use.
"""

from __future__ import annotations

from importlib import import_module

__version__ = "0.1.0"

_HOMES = {
    "etl.commands.library": (
        "connect",
        "diff",
        "load_config",
        "plan",
        "report",
        "run",
        "run_async",
        "status",
        "verify",
    ),
    "etl.commands.difference": ("Difference",),
    "etl.commands.result": ("RunResult", "Status", "WrittenReport"),
    "etl.config": ("Config",),
    "etl.model": ("Progress",),
    "etl.errors": (
        *("AuthError", "ContractError", "EtlError", "GuardError", "Interrupted", "PublishConflict"),
        *(
            "SinkError",
            "SourceUnavailable",
            "TargetCorrupt",
            "TargetLocked",
            "Terminated",
            "UnprovenError",
            "UsageError",
        ),
    ),
}
__all__ = ["__version__", *sorted(name for names in _HOMES.values() for name in names)]  # noqa: PLE0604 - see the stub


def __getattr__(name: str) -> object:
    """Import a public name from its module."""
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home), name)
    message = f"module 'etl' has no attribute {name!r}"
    raise AttributeError(message)


def __dir__() -> list[str]:
    """The public names."""
    return __all__
