"""`etl.normalize.phones` finds the intended number or none, for every country and spelling."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

import phonenumbers
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from phonenumbers import PhoneMetadata, PhoneNumberFormat, PhoneNumberType
from phonenumbers.phonenumberutil import COUNTRY_CODE_TO_REGION_CODE

from etl.normalize.phones import e164
from tests.support.expected_rows import e164 as by_the_library

KINDS = ("fixed_line", "mobile", "toll_free", "premium_rate", "shared_cost", "voip", "personal_number", "pager", "uan")


def found(*pairs: tuple[str | None, str | None]) -> list[str | None]:
    """The E.164 form of each pair of prefix and number."""
    prefixes, numbers = zip(*pairs, strict=True)
    made: list[str | None] = e164(pa.array(prefixes, pa.string()), pa.array(numbers, pa.string())).to_pylist()
    return made


def examples(code: int) -> list[str]:
    """The library's example of each kind of number in each region of a country code."""
    regions = [
        PhoneMetadata.metadata_for_region_or_calling_code(code, name) for name in COUNTRY_CODE_TO_REGION_CODE[code]
    ]
    descriptions = [getattr(region, kind) for region in regions for kind in KINDS]
    return sorted({found.example_number for found in descriptions if found is not None and found.example_number})


EXAMPLES = {code: examples(code) for code in COUNTRY_CODE_TO_REGION_CODE}


@st.composite
def pairs(draw: st.DrawFn) -> tuple[str, str]:
    """A prefix and a number close to a valid one: shortened, extended, with another tail, leading digits or spaces."""
    code = draw(st.sampled_from(sorted(EXAMPLES)))
    number = draw(st.sampled_from(EXAMPLES[code]))
    kept = draw(st.integers(0, len(number)))
    tail = draw(st.text("0123456789", min_size=0, max_size=len(number) - kept + 1))
    lead = draw(
        st.sampled_from(("", "", "", "0", "00", "1", "8", str(code), f"00{code}", f"+{code}", f"{code} 0", "+"))
    )
    prefix = draw(st.sampled_from(("{}", "+{}", " +{} ", "00{}", "{}-", "")))
    gap = draw(st.sampled_from(("", "", " ", "  ", "\u00a0")))
    return prefix.format(code), f"{lead}{number[:kept]}{gap}{tail}"


@settings(max_examples=120, deadline=None)
@given(batch=st.lists(pairs(), min_size=1, max_size=12))
def test_agrees_with_the_library(batch: list[tuple[str, str]]) -> None:
    """A result of the shortcut equals the library's result over all readings of the digits (A31)."""
    assert found(*batch) == [by_the_library(*pair) for pair in batch]


def test_every_example_number_of_every_country() -> None:
    """All example numbers of all countries, whole, shortened and with a leading 0, agree with the library (A31)."""
    batch = [
        (str(code), form)
        for code, numbers in EXAMPLES.items()
        for number in numbers
        for form in (number, number[:-1], f"0{number}", f"{code}{number}", f"{code}{number[:-1]}", f"00{code}{number}")
    ]
    made = found(*batch)
    assert made == [by_the_library(*pair) for pair in batch]
    assert sum(number is not None for number in made) > len(batch) / 3


class Truth(NamedTuple):
    """A number of a region, in the library's spellings."""

    code: str
    trunk: str
    significant: str
    national: str
    international: str
    rfc: str
    e164: str


def truths() -> list[Truth]:
    """A number of each type in each region."""
    wanted = [
        (phonenumbers.example_number_for_type(region, kind), phonenumbers.ndd_prefix_for_region(region, True) or "")
        for region in sorted(phonenumbers.SUPPORTED_REGIONS)
        for kind in PhoneNumberType.values()
        if kind != PhoneNumberType.UNKNOWN
    ]
    forms = (
        *(PhoneNumberFormat.NATIONAL, PhoneNumberFormat.INTERNATIONAL),
        *(PhoneNumberFormat.RFC3966, PhoneNumberFormat.E164),
    )
    return [
        Truth(
            str(number.country_code),
            trunk,
            phonenumbers.national_significant_number(number),
            *(phonenumbers.format_number(number, form) for form in forms),
        )
        for number, trunk in wanted
        if number is not None
    ]


TRUTHS = truths()


def script(zero: str) -> Callable[[str], str]:
    """A function that writes a text with the digits of another script."""
    return lambda text: re.sub("[0-9]", lambda digit: chr(ord(zero) + int(digit[0])), text)


def separated(text: str, separator: str) -> str:
    """A text with other separators."""
    return re.sub("[ -]+", separator, text)


Spelling = Callable[[Truth], str]
PLAIN: dict[str, Spelling] = {
    "significant": lambda n: n.significant,
    "trunk": lambda n: n.trunk + n.significant,
    "national": lambda n: n.national,
    "E.164": lambda n: n.e164,
    "international": lambda n: n.international,
}
CERTAIN: dict[str, Spelling] = {
    "00": lambda n: f"00{n.e164[1:]}",
    "00 spaced": lambda n: f"00 {n.international[1:]}",
    "+ in parentheses": lambda n: f"(+{n.code}) {n.significant}",
    "+ and trunk": lambda n: f"+{n.code} {n.trunk}{n.significant}",
    "+ and (trunk)": lambda n: f"+{n.code} ({n.trunk}){n.significant}",
    "tel": lambda n: f"tel:{n.national}",
    "full-width +": lambda n: f"\uff0b{n.e164[1:]}",
    "marks": lambda n: f"\u202a{n.international}\u202c",
    "dots": lambda n: separated(n.national, "."),
    "NBSP": lambda n: separated(n.national, "\u00a0"),
    "Arabic": lambda n: script("\u0660")(n.national),
    "Devanagari": lambda n: script("\u0966")(n.international),
    "full-width": lambda n: script("\uff10")(n.e164),
    **{
        f"{name}{label}12": lambda n, form=form, label=label: f"{form(n)}{label}12"
        for name, form in PLAIN.items()
        for label in (" ext. ", " x", "#", ";ext=", ", ext ", " Extension ")
    },
}
MOSTLY: dict[str, Spelling] = {
    "repeated": lambda n: n.e164[1:],
    "repeated, spaced": lambda n: n.international[1:],
    "repeated, trunk": lambda n: f"{n.code} {n.trunk}{n.significant}",
    "repeated twice": lambda n: n.code + n.e164[1:],
    "+ and (0)": lambda n: f"+{n.code} (0){n.significant}",
    "(0)": lambda n: f"(0){n.significant}",
    "0011": lambda n: f"0011{n.e164[1:]}",
    "011": lambda n: f"011 {n.international[1:]}",
    "RFC 3966": lambda n: n.rfc,
    "RFC 3966 with extension": lambda n: f"{n.rfc};ext=12",
    "dashes": lambda n: separated(n.international, "-"),
    "en dashes": lambda n: separated(n.national, " \u2013 "),
    "JSON number": lambda n: f"{n.significant}.0",
}
DOUBTFUL: dict[str, Spelling] = {
    "slashes": lambda n: separated(n.national, "/"),
    "a slash": lambda n: f"{n.significant[:3]} / {n.significant[3:]}",
    "two": lambda n: f"{n.national} / {n.national}",
    "two and comma": lambda n: f"{n.national}, {n.national}",
    "two lines": lambda n: f"{n.national}\n{n.national}",
    "+ twice": lambda n: f"+{n.code} {n.e164}",
    "masked": lambda n: f"{n.national[:-1]}x",
    "masked inside": lambda n: f"{n.national[:-3]}xx{n.national[-1]}",
    "letter O": lambda n: f"{n.national[:-1]}O",
    "negative": lambda n: f"-{n.significant}",
    "exponent": lambda n: f"{n.significant[0]}.{n.significant[1:]}e{len(n.significant) - 1}",
    **{
        f"{name}{tail!a}": lambda n, form=form, tail=tail: form(n) + tail
        for name, form in PLAIN.items()
        for tail in (" (12)", " / 12", "/12", "/7", " - 12", "-12", ", 12", "; 12", ",,12#", "p12", " or 12", "\n12")
    },
}


@pytest.mark.parametrize(
    ("spellings", "missing"),
    [(PLAIN, 1), (CERTAIN, 2), (MOSTLY, 70), (DOUBTFUL, None)],
    ids=["plain", "certain", "mostly", "doubtful"],
)
@pytest.mark.parametrize("plus", ["", "+"])
def test_a_number_is_the_right_one_or_none(spellings: dict[str, Spelling], missing: int | None, plus: str) -> None:
    """No region, type or spelling gives a wrong number; plain spellings are understood but for a few ambiguous ones."""
    for name, spelling in spellings.items():
        made = found(*((f"{plus}{truth.code}", spelling(truth)) for truth in TRUTHS))
        wrong = [
            (spelling(truth), number)
            for truth, number in zip(TRUTHS, made, strict=True)
            if number not in (truth.e164, None)
        ]
        assert not wrong, name
        assert missing is None or made.count(None) <= missing, name


def test_a_number_of_another_country_is_none() -> None:
    """A number that starts with "+" or "00" is international and must match the prefix's country."""
    for code in COUNTRY_CODE_TO_REGION_CODE:
        others = [truth.e164 for truth in TRUTHS if truth.code != str(code)]
        for lead in ("+", "00", "00 ", "0011 "):
            made = found(*((str(code), lead + other[1:]) for other in others[::7]))
            assert not any(made), (code, lead)


def digits_of(text: str) -> str:
    """The digits of a text, those of any script as ASCII."""
    return re.sub(r"\d", lambda digit: str(int(digit[0])), re.sub(r"\D", "", text))


def in_order(wanted: str, text: str) -> bool:
    """Whether the characters of `wanted` occur in `text` in this order."""
    rest = iter(text)
    return all(character in rest for character in wanted)


PIECES = (
    *(
        "0",
        "1",
        "2",
        "49",
        "91",
        "44",
        "1512",
        "98765",
        "43210",
        "3456789",
        "20 7946",
        "00",
        "011",
        "+",
        "(",
        ")",
        "(0)",
    ),
    *(
        " ",
        "-",
        "/",
        ".",
        ".0",
        ",",
        ";",
        "x",
        "ext",
        "#",
        "tel:",
        "e9",
        "e",
        "\n",
        "\u00a0",
        "\u0663",
        "\uff0b",
        "\uff11",
    ),
)
texts = st.lists(st.sampled_from(PIECES), max_size=9).map("".join)
spelled = st.builds(
    lambda truth, spelling, odd: (truth.code, spelling(truth) + odd),
    st.sampled_from(TRUTHS),
    st.sampled_from([*PLAIN.values(), *CERTAIN.values(), *MOSTLY.values(), *DOUBTFUL.values()]),
    st.one_of(st.just(""), texts),
)
odd_prefixes = st.one_of(st.sampled_from(["91", "+49", "1-868", "44 (UK)", "0044", "4", "39", "1"]), texts)


@settings(max_examples=400, deadline=None)
@given(pair=st.one_of(spelled, st.tuples(odd_prefixes, st.one_of(texts, st.text()))))
def test_whatever_the_text_the_number_is_valid_and_made_of_its_digits(pair: tuple[str, str]) -> None:
    """The result is null, or a valid number of the prefix's country with the digits of prefix and number in order."""
    [number] = found(pair)
    if number is None:
        return
    parsed = phonenumbers.parse(number)
    assert phonenumbers.is_valid_number(parsed)
    code = str(parsed.country_code)
    assert digits_of(pair[0]).startswith(code) or code.startswith(digits_of(pair[0]))
    national = phonenumbers.format_number(parsed, PhoneNumberFormat.NATIONAL)  # Argentina says 15 at home for 9 abroad
    given_digits = digits_of("".join(pair))
    assert in_order(number[1:], given_digits) or in_order(digits_of(national), given_digits)


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
        ("1", "1" * 10**6, None),
        ("91", f"9{' ' * 10**6}z", None),
        ("1" + "-" * 10**6 + "1", "4155552671", None),
        # the number names its own country
        ("49", "+49 1512 3456789", "+4915123456789"),
        ("49", "+49 (0)1512 3456789", "+4915123456789"),
        ("49", "(0)1512 3456789", "+4915123456789"),
        ("49", "0049 1512 3456789", "+4915123456789"),
        ("49", "+43 660 1234567", None),
        ("39", "+39 (0)6 1234 5678", "+390612345678"),
        ("1", "011 1 415 555 2671", "+14155552671"),
        ("91", "011 2345 6789", "+911123456789"),
        ("91", "91 98765 43210", "+919876543210"),
        ("91", "9198765432", "+919198765432"),
        ("49", "4915123456789", None),
        # an extension or a second number adds no digits
        ("43", "664 123456 ext. 12", "+43664123456"),
        ("1", "415-555-2671x12", "+14155552671"),
        ("44", "tel:+44-20-7946-0123;ext=12", "+442079460123"),
        ("49", "030 123456 / 12", None),
        ("49", "030 123456-12", None),
        ("49", "030/123456", "+4930123456"),
        ("91", "022 2345678/9", None),
        ("91", "022 2345678-9", None),
        ("91", "98765 43210, 98765 43211", None),
        ("7", "8 (916) 123-45-67", "+79161234567"),
        ("1", "1-800-FLOWERS", None),
        ("49", "030 12345O", None),
        ("49", "030 1234xx", None),
        # a number from JSON or a spreadsheet
        ("91", "9876543210.0", "+919876543210"),
        ("49", "15123456789.0", "+4915123456789"),
        ("49.0", "15123456789", "+4915123456789"),
        ("91", "9.87654321e9", None),
        ("91", "-9876543210", None),
        ("91", '{"national":"9876543210"}', None),
        ('{"code":"91","id":7}', "9876543210", None),
        ("true", "9876543210", None),
        ("-91", "9876543210", None),
        ("91\ufffd", "9876543210", None),
        # the prefix is more than a country code
        ("1-868", "620-1234", "+18686201234"),
        ("1868", "868 620 1234", "+18686201234"),
        ("1868", "1 868 620 1234", "+18686201234"),
        ("1-868", "+1 868 620 1234", "+18686201234"),
        ("1-868", "+1 415 555 2671", None),
        ("44 (UK)", "020 7946 0123", "+442079460123"),
        ("+44 (0)", "020 7946 0123", "+442079460123"),
        ("+44 (0)", "20 7946 0123", "+442079460123"),
        ("India +91", "98765 43210", "+919876543210"),
        ("\uff19\uff11", "98765 43210", "+919876543210"),
        ("44/49", "15123456789", None),
        ("+4915123456789", "15123456789", "+4915123456789"),
        ("+4915123456789", "+4915123456789", "+4915123456789"),
        ("+4930123456", "789", None),
    ],
)
def test_forms(prefix: str | None, number: str | None, expected: str | None) -> None:
    """A number is understood in any spelling; text that is not a number, or an ambiguous one, is null."""
    assert found((prefix, number)) == [expected]
