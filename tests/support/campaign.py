"""Variants of a costly test, of which `make test` plays one or two and `make campaigns` the others."""

import pytest


def campaign(*values: object) -> object:
    """The values of a parametrized case that only `make campaigns` plays."""
    return pytest.param(*values, marks=pytest.mark.campaign)
