"""The fault catalogue agrees with the tests: every id in a test exists, and every uncovered fault is listed."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter

import pytest

from tests.support.faults import CATALOGUE, GROUPS, NOT_APPLICABLE, TESTS, cases, coverage, named

UNCOVERED = {
    "X16": "there is no command to erase one contact",
}
"""Applicable faults without a test, with the reason."""


def test_every_case_that_a_test_names_exists() -> None:
    """Every id in a docstring or a case name is in the catalogue."""
    unknown = {case: tests for case, tests in coverage().items() if case not in CATALOGUE}
    assert unknown == {}


def test_what_no_test_names_is_known() -> None:
    """Every applicable fault has a test or is listed as uncovered, never both."""
    missing = {case for case in CATALOGUE if case not in NOT_APPLICABLE} - coverage().keys()
    assert missing == UNCOVERED.keys()


def test_what_does_not_apply_has_no_test() -> None:
    """A fault that is listed as not applicable has no test."""
    assert NOT_APPLICABLE.keys() <= CATALOGUE.keys()
    assert NOT_APPLICABLE.keys() & (coverage().keys() | UNCOVERED.keys()) == set()


def test_the_catalogue_is_whole() -> None:
    """The catalogue has 168 faults in six groups, each with a unique short title."""
    assert Counter(case[0] for case in CATALOGUE) == {"N": 25, "A": 55, "M": 15, "P": 29, "S": 23, "X": 21}
    assert Counter(case[0] for case in CATALOGUE).keys() == GROUPS.keys()
    assert max(Counter(CATALOGUE.values()).values()) == 1
    assert max(map(len, CATALOGUE.values())) <= 60


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a reset is got over (N4, N7).", ["N4", "N7"]),
        ("A25-A27, S1: all of it", ["A25", "A26", "A27", "S1"]),
        ("A5 to A7", ["A5", "A6", "A7"]),
        ("P1 to S3", ["P1", "S3"]),
        ("UTF16, X86, PN5, N5a, S3x, A123 and SHA1", ["X86"]),
    ],
)
def test_ids_are_told_from_other_words(text: str, found: list[str]) -> None:
    """An id counts as itself, a range as all ids in it, and words that resemble an id are ignored."""
    assert list(cases(text)) == found


MODULE = '''
CASES = {"A1 a token": 1, "N4 N5 a cut": 2, "no X1 here": 3}

@pytest.mark.parametrize("name", CASES)
def test_table(name):
    """P1: by a table."""

async def test_plain():
    """By its docstring (S2)."""

def helper():
    """A9 is not tested by this."""
'''


def test_a_test_is_known_by_its_docstring_and_its_table() -> None:
    """The ids in a test's docstring and at the start of its case names count; all others are ignored."""
    found = list(named(ast.parse(MODULE)))
    assert found == [("test_table", case) for case in ("P1", "A1", "N4", "N5")] + [("test_plain", "S2")]


def test_the_list_is_printed() -> None:
    """`python -m tests.support.faults` prints every fault with its tests, a line for each group, and exits with 0."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.faults"], cwd=TESTS.parent, capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    assert {
        line.split(maxsplit=1)[0] for line in lines if line and line[0] in GROUPS
    } == CATALOGUE.keys() | GROUPS.keys()
    assert [line[0] for line in lines[-len(GROUPS) :]] == list(GROUPS)
    assert "test_what_no_test_names_is_known" not in done.stdout
