"""Build E.164 numbers from a prefix ("91", "+44") and a number as people write it; null if not certain.

A number is read in every possible way: as a national number, as an international one ("+", "00"), as one that repeats
its country code. If exactly one valid number of the prefix's country results, it is used; of two different numbers one
belongs to another person, so neither is used.

The `phonenumbers` library takes twice as long for one number as everything else takes for a contact. Most numbers need
only its metadata: once the country code is known, a number is valid if it matches the pattern of one of the code's
number types. The library is called only if that is not sufficient (several regions share a code, an unusual national
prefix).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from itertools import accumulate

import phonenumbers
import pyarrow as pa
from phonenumbers import PhoneMetadata, PhoneNumberDesc
from phonenumbers.phonenumberutil import COUNTRY_CODE_TO_REGION_CODE

_ORDINARY = re.compile(r"(?:\([0-9]{2,}\) ?)?[0-9](?:[0-9 ]*[0-9]|[0-9 -]*[0-9]{4})")
"""Most numbers that are not only digits: 98765 43210, 98765-43210, (415) 555-2671."""
_WRITTEN = re.compile(
    r"""
    (?:tel:)?\ *
    (?:
        (?P<float>[1-9][0-9]*)\.0 |
        (?!\+?[0-9]+\.0+\Z)
        (?:\(?(?P<plus>\+)\ *)?(?P<body>[(0-9][-0-9 ()./]*[0-9])
        (?:[ ,;]*(?:ext(?:ension|n)?|int|anexo|доб|x|\#)[ .:=]*[0-9]{1,7})?
    )
    """,
    re.VERBOSE | re.IGNORECASE,
)
"""All other supported formats: +49 (0)30/123456, tel:+49-30-123456;ext=12, 98765.43210 x12, and 9876543210.0.

The last was a number in JSON or in a spreadsheet. An extension is dropped.
"""
_RANGE = re.compile(r"[0-9]{3} *(?:- *[0-9]{1,2}|/ *[0-9]{1,4})$")
"""2345678-79, 2345678/9: several numbers, or an extension."""
_PERHAPS_END = re.compile(r"/|-(?= *[0-9]{1,3}$)")
"""Separators of an area code and a number, 030/123456, or of a number and an extension, 123456-12."""
_PREFIX = re.compile(r"""[^-0-9[{"\ufffd]*(?P<digits>[0-9][-0-9 ().]*?)(?:\.0)?[^0-9\ufffd]*""")
"""A country code, alone or with its country: +44, 1-868, 44 (UK), India +91, and 91.0."""
_LONGEST = 100
"""The maximum length of a number in characters; longer texts would take long to search."""

_NOT_A_DIGIT = re.compile(r"[^0-9]+")
_OTHER_DIGIT = re.compile(r"[^\D0-9]")
_LOOKS = {
    **{wide: wide - 0xFEE0 for wide in range(0xFF01, 0xFF5F)},
    **dict.fromkeys((0xA0, *range(0x2000, 0x200B), 0x202F, 0x205F, 0x3000), " "),
    **dict.fromkeys((*range(0x2010, 0x2016), 0x2212), "-"),
    **dict.fromkeys((0xAD, *range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x206A), 0xFEFF)),
}
"""Characters that look like ASCII, as ASCII: full-width forms, spaces, dashes; invisible characters are removed."""
_KINDS = (
    *("mobile", "fixed_line", "toll_free", "premium_rate", "shared_cost"),
    *("voip", "personal_number", "pager", "uan", "voicemail"),
)
"""The number types that make a number valid, the frequent ones first."""


def e164(prefixes: pa.StringArray, numbers: pa.StringArray) -> pa.StringArray:
    """The E.164 form of each prefix and number; null if they form no valid number, or are ambiguous."""
    pairs = zip(prefixes.to_pylist(), numbers.to_pylist(), strict=True)
    return pa.array(
        [None if prefix is None or number is None else _e164(prefix, number) for prefix, number in pairs], pa.string()
    )


def _e164(prefix: str, number: str) -> str | None:
    if number.isdecimal() and number.isascii():
        digits = number
    elif _ORDINARY.fullmatch(number):
        digits = number.replace(" ", "").replace("-", "").replace("(", "").replace(")", "")
    else:
        return _written(prefix, number) if len(number) <= _LONGEST else None
    known = _country(prefix)
    if known is None:
        # The country code may be split between prefix and number.
        start = _prefix_digits(prefix)
        return _ask(start + digits) if start else None
    rules, rest = known
    return rules.only_reading(rest, digits) if rest else rules.e164(digits)


@lru_cache(maxsize=4096)
def _written(prefix: str, number: str) -> str | None:
    """The number in a text that contains more than digits, spaces and dashes."""
    known, found = _country(prefix), _WRITTEN.fullmatch(_ascii(number).rstrip(" -./"))
    if known is None or found is None:
        return None
    rules, rest = known
    body = found["float"] or found["body"]
    if _RANGE.search(body):
        return None
    read = partial(rules.international if found["plus"] else rules.only_reading, rest)
    numbers = set[str | None]()
    for form in {body, body.replace("(0)", "")}:
        *shorter, whole = accumulate(_NOT_A_DIGIT.sub("", part) for part in _PERHAPS_END.split(form))
        numbers.add(read(whole))
        if any(map(read, shorter)):
            return None
    return _only(numbers)


def _only(numbers: Iterable[str | None]) -> str | None:
    """The number, if exactly one was found."""
    found = set(filter(None, numbers))
    return found.pop() if len(found) == 1 else None


def _ascii(text: str) -> str:
    return _OTHER_DIGIT.sub(lambda digit: str(int(digit[0])), text.translate(_LOOKS)).strip()


@lru_cache(maxsize=4096)
def _country(prefix: str) -> tuple[_Rules, str] | None:
    """The country of a prefix, and the digits after its code; None if the prefix alone does not determine it."""
    digits = _prefix_digits(prefix)
    for end in range(1, min(len(digits), 3) + 1):
        if int(digits[:end]) in COUNTRY_CODE_TO_REGION_CODE:
            return _rules(int(digits[:end])), digits[end:]
    return None


@lru_cache(maxsize=4096)
def _prefix_digits(prefix: str) -> str:
    found = _PREFIX.fullmatch(_ascii(prefix).replace("(0)", "")) if len(prefix) <= _LONGEST else None
    digits = _NOT_A_DIGIT.sub("", found["digits"]) if found else ""
    return "" if digits.startswith("0") else digits


@lru_cache(maxsize=4096)
def _ask(digits: str) -> str | None:
    """The library's result for the digits of an international number."""
    try:
        number = phonenumbers.parse(f"+{digits}")
    except phonenumbers.NumberParseException:
        return None
    if not phonenumbers.is_valid_number(number):
        return None
    return phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164)


@dataclass(frozen=True, slots=True)
class _Rules:
    """The metadata of a country code that is sufficient without the library."""

    code: str
    start: re.Pattern[str]
    """As a group, the start of a number that may be more than national; else the prefix that the library strips."""
    national_prefix: re.Pattern[str]
    """The prefix that the library strips from the start of a number."""
    transforms: bool
    """Whether the library may replace that prefix rather than remove it."""
    main: dict[int, re.Pattern[str]]
    """By length, the valid numbers of the code's main region: valid regardless of the other regions."""
    others: dict[int, re.Pattern[str]]
    """By length, the valid numbers of the other regions: one of their other rules may exclude them."""

    def e164(self, digits: str) -> str | None:
        """The number after a prefix that is only the country code."""
        start = self.start.match(digits)
        return self.only_reading("", digits) if start and start[1] else self._valid(digits, start)

    def only_reading(self, rest: str, digits: str) -> str | None:
        """The number after the code and `rest`, if all readings that give a valid number give the same one."""
        if len(digits) > _LONGEST:
            return None
        readings = [self._national(rest + digits)]
        if rest:
            readings.append(self._national(rest))
            if digits.startswith(rest):
                readings.append(self._national(digits))
        if digits.startswith("0"):
            readings += [_ask(digits.removeprefix(abroad)) for abroad in ("00", "0011") if digits.startswith(abroad)]
            if digits.startswith(f"011{self.code}"):
                readings.append(_ask(digits.removeprefix("011")))
        while digits.startswith(self.code):
            digits = digits.removeprefix(self.code)
            readings.append(self._national(digits))
        return self._own(rest, _only(readings))

    def international(self, rest: str, digits: str) -> str | None:
        """The number that `digits` form after a "+", if it begins with the code and `rest`."""
        if not digits.startswith(self.code):
            return None
        return self._own(rest, self._national(digits.removeprefix(self.code)))

    def _own(self, rest: str, number: str | None) -> str | None:
        return number if number is not None and number.startswith(f"+{self.code}{rest}") else None

    def _national(self, digits: str) -> str | None:
        return self._valid(digits, self.national_prefix.match(digits))

    def _valid(self, national: str, stripped: re.Match[str] | None) -> str | None:
        if stripped and (self.transforms or not stripped.end()):
            return _ask(self.code + national)
        rest = national[stripped.end() :] if stripped else national
        valid = self.main.get(len(rest))
        if valid is not None and valid.fullmatch(rest):
            return f"+{self.code}{rest}"
        perhaps = _matches(self.others, rest)
        if stripped:
            perhaps = perhaps or _matches(self.main, national) or _matches(self.others, national)
        return _ask(self.code + national) if perhaps else None


def _matches(patterns: dict[int, re.Pattern[str]], digits: str) -> bool:
    pattern = patterns.get(len(digits))
    return pattern is not None and pattern.fullmatch(digits) is not None


@cache
def _rules(code: int) -> _Rules:
    """The rules of a country code; compiled once, in a few milliseconds."""
    regions: list[PhoneMetadata] = []
    for region in COUNTRY_CODE_TO_REGION_CODE[code]:
        metadata = PhoneMetadata.metadata_for_region_or_calling_code(code, region)
        if metadata is None:
            raise LookupError(f"phonenumbers has no metadata of {region} +{code}")
        regions.append(metadata)
    main, others = regions[0], regions[1:]
    prefix = main.national_prefix_for_parsing or "(?!)"
    return _Rules(
        str(code),
        re.compile(f"(00|011{code}|{code})|{prefix}"),
        re.compile(prefix),
        bool(main.national_prefix_transform_rule),
        {} if main.leading_digits else _patterns([main]),
        _patterns(regions if main.leading_digits else others),
    )


def _patterns(regions: list[PhoneMetadata]) -> dict[int, re.Pattern[str]]:
    by_length: dict[int, list[str]] = {}
    for region in regions:
        kinds = [kind for name in _KINDS if (kind := getattr(region, name)) is not None]
        general = region.general_desc or PhoneNumberDesc()
        start = f"(?={region.leading_digits or ''})(?=(?:{general.national_number_pattern})\\Z)"
        for length in general.possible_length:
            # A number type without lengths has those of its region.
            fitting = [kind for kind in kinds if length in (kind.possible_length or (length,))]
            patterns = [kind.national_number_pattern for kind in fitting if kind.national_number_pattern]
            either = "|".join(f"(?:{pattern})" for pattern in patterns)
            if either:
                by_length.setdefault(length, []).append(f"{start}(?:{either})")
    return {length: re.compile("|".join(found)) for length, found in by_length.items()}
