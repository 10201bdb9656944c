"""`etl.normalize.phones` says what the library says, for every country code, about right and wrong numbers."""

from __future__ import annotations

import re

import phonenumbers
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from phonenumbers import PhoneMetadata
from phonenumbers.phonenumberutil import COUNTRY_CODE_TO_REGION_CODE

from etl.normalize.phones import e164

KINDS = ("fixed_line", "mobile", "toll_free", "premium_rate", "shared_cost", "voip", "personal_number", "pager", "uan")


def library(prefix: str, number: str) -> str | None:
    """The library's own word on a prefix and a number."""
    code, national = re.sub(r"\D", "", prefix), re.sub(r"\D", "", number)
    if not code or not national:
        return None
    try:
        found = phonenumbers.parse(f"+{code}{national}")
    except phonenumbers.NumberParseException:
        return None
    valid = phonenumbers.is_valid_number(found)
    return phonenumbers.format_number(found, phonenumbers.PhoneNumberFormat.E164) if valid else None


def examples(code: int) -> list[str]:
    """The library's example of each kind of number in each region of a code."""
    regions = [
        PhoneMetadata.metadata_for_region_or_calling_code(code, name) for name in COUNTRY_CODE_TO_REGION_CODE[code]
    ]
    descriptions = [getattr(region, kind) for region in regions for kind in KINDS]
    return sorted({found.example_number for found in descriptions if found is not None and found.example_number})


EXAMPLES = {code: examples(code) for code in COUNTRY_CODE_TO_REGION_CODE}


@st.composite
def pairs(draw: st.DrawFn) -> tuple[str, str]:
    """A prefix and a number near to a valid one: cut, prolonged, with a changed tail, a leading digit, spaces."""
    code = draw(st.sampled_from(sorted(EXAMPLES)))
    number = draw(st.sampled_from(EXAMPLES[code]))
    kept = draw(st.integers(0, len(number)))
    tail = draw(st.text("0123456789", min_size=0, max_size=len(number) - kept + 1))
    lead = draw(st.sampled_from(("", "", "", "0", "00", "1", "8", str(code), "(0) ")))
    prefix = draw(st.sampled_from(("{}", "+{}", " +{} ", "00{}", "{}-", "")))
    gap = draw(st.sampled_from(("", "", " ", "-", "/ ", "\u00a0")))
    return prefix.format(code), f"{lead}{number[:kept]}{gap}{tail}"


@settings(max_examples=120, deadline=None)
@given(batch=st.lists(pairs(), min_size=1, max_size=12))
def test_agrees_with_the_library(batch: list[tuple[str, str]]) -> None:
    """Whatever the shortcut answers on its own is the library's answer (A31)."""
    prefixes, numbers = zip(*batch, strict=True)
    found = e164(pa.array(prefixes, pa.string()), pa.array(numbers, pa.string()))
    assert found.to_pylist() == [library(*pair) for pair in batch]


def test_every_example_number_of_every_country() -> None:
    """All example numbers of all countries, whole, cut and with a leading 0, agree with the library (A31)."""
    batch = [
        (str(code), form)
        for code, numbers in EXAMPLES.items()
        for number in numbers
        for form in (number, number[:-1], f"0{number}")
    ]
    prefixes, numbers = zip(*batch, strict=True)
    found = e164(pa.array(prefixes, pa.string()), pa.array(numbers, pa.string())).to_pylist()
    assert found == [library(*pair) for pair in batch]
    assert sum(number is not None for number in found) > len(batch) / 3


@pytest.mark.parametrize(
    ("prefix", "number", "expected"),
    [
        ("44", "07911 123456", "+447911123456"),
        ("+44", "7911-123456", "+447911123456"),
        (" +1 ", "(415) 555-2671", "+14155552671"),
        ("91", "9812345678", "+919812345678"),
        ("39", "06 1234 5678", "+390612345678"),
        ("1", "5550100", None),
        ("+1868", "6201234", "+18686201234"),
        ("4", "47911123456", "+447911123456"),
        ("0044", "7911123456", None),
        ("999", "12345678", None),
        ("91", "\u0669\u0668\u0661\u0662\u0663\u0664\u0665\u0666\u0667\u0668", "+919812345678"),
        ("91", "call me", None),
        ("", "9812345678", None),
        (None, "9812345678", None),
        ("91", None, None),
        ("91", "9" * 300, None),
    ],
)
def test_forms(prefix: str | None, number: str | None, expected: str | None) -> None:
    """A national 0, punctuation and a split country code are understood; what is no number is null."""
    assert e164(pa.array([prefix], pa.string()), pa.array([number], pa.string())).to_pylist() == [expected]
