"""E.164 numbers: what the `phonenumbers` library says of "+", the digits of a prefix and the digits of a number.

The library takes twice as long for one number as everything else takes for a contact. Most numbers need only its
metadata: once the country code is known, a number is valid if it matches the pattern of one of the code's kinds of
numbers. Where that alone does not decide (several regions share a code, an unusual national prefix), it is asked.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache, lru_cache

import phonenumbers
import pyarrow as pa
from phonenumbers import PhoneMetadata, PhoneNumberDesc
from phonenumbers.phonenumberutil import COUNTRY_CODE_TO_REGION_CODE

_NOT_A_DIGIT = re.compile(r"\D+")
_KINDS = (
    *("mobile", "fixed_line", "toll_free", "premium_rate", "shared_cost"),
    *("voip", "personal_number", "pager", "uan", "voicemail"),
)
"""The kinds of numbers that make a number valid, the frequent ones first."""


def e164(prefixes: pa.StringArray, numbers: pa.StringArray) -> pa.StringArray:
    """The E.164 form of each prefix ("91", "+44") and national number; null where they are no valid phone number."""
    pairs = zip(prefixes.to_pylist(), numbers.to_pylist(), strict=True)
    return pa.array(
        [None if prefix is None or number is None else _e164(prefix, number) for prefix, number in pairs], pa.string()
    )


def _e164(prefix: str, number: str) -> str | None:
    digits = number if number.isdecimal() else _NOT_A_DIGIT.sub("", number)
    if not digits:
        return None
    known = _country(prefix)
    if known is None or not digits.isascii():
        code = _NOT_A_DIGIT.sub("", prefix)
        return _ask(code + digits) if code else None
    rules, rest = known
    return rules.e164(rest + digits)


@lru_cache(maxsize=4096)
def _country(prefix: str) -> tuple[_Rules, str] | None:
    """The country of a prefix, and the digits behind its code; None where the prefix alone does not tell."""
    digits = _NOT_A_DIGIT.sub("", prefix)
    if not digits.isascii() or digits.startswith("0"):
        return None
    for end in range(1, min(len(digits), 3) + 1):
        if int(digits[:end]) in COUNTRY_CODE_TO_REGION_CODE:
            return _rules(int(digits[:end])), digits[end:]
    return None


@lru_cache(maxsize=4096)
def _ask(digits: str) -> str | None:
    """The library's own answer."""
    try:
        number = phonenumbers.parse(f"+{digits}")
    except phonenumbers.NumberParseException:
        return None
    if not phonenumbers.is_valid_number(number):
        return None
    return phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164)


@dataclass(frozen=True, slots=True)
class _Rules:
    """The metadata of a country code, as far as it decides alone."""

    code: int
    national_prefix: re.Pattern[str] | None
    """What the library strips from the start of a number."""
    transforms: bool
    """Whether it may put something in its place."""
    main: dict[int, re.Pattern[str]]
    """By length, the valid numbers of the code's main region: they are valid, whatever the other regions say."""
    others: dict[int, re.Pattern[str]]
    """By length, the valid numbers of the other regions: one of their other rules may forbid them."""

    def e164(self, national: str) -> str | None:
        stripped = self.national_prefix.match(national) if self.national_prefix else None
        if stripped and (self.transforms or not stripped.end()):
            return _ask(f"{self.code}{national}")
        rest = national[stripped.end() :] if stripped else national
        if _matches(self.main, rest):
            return f"+{self.code}{rest}"
        perhaps = _matches(self.others, rest)
        if stripped:
            perhaps = perhaps or _matches(self.main, national) or _matches(self.others, national)
        return _ask(f"{self.code}{national}") if perhaps else None


def _matches(patterns: dict[int, re.Pattern[str]], digits: str) -> bool:
    pattern = patterns.get(len(digits))
    return pattern is not None and pattern.fullmatch(digits) is not None


@cache
def _rules(code: int) -> _Rules:
    """The rules of a country code; compiled once, in some milliseconds."""
    regions = [_metadata(code, region) for region in COUNTRY_CODE_TO_REGION_CODE[code]]
    main, others = regions[0], regions[1:]
    prefix = main.national_prefix_for_parsing
    return _Rules(
        code,
        re.compile(prefix) if prefix else None,
        bool(main.national_prefix_transform_rule),
        {} if main.leading_digits else _patterns([main]),
        _patterns(regions if main.leading_digits else others),
    )


def _metadata(code: int, region: str) -> PhoneMetadata:
    found = PhoneMetadata.metadata_for_region_or_calling_code(code, region)
    if found is None:
        raise LookupError(f"phonenumbers has no metadata of {region} +{code}")
    return found


def _patterns(regions: list[PhoneMetadata]) -> dict[int, re.Pattern[str]]:
    by_length: dict[int, list[str]] = {}
    for region in regions:
        kinds = [kind for name in _KINDS if (kind := getattr(region, name)) is not None]
        general = region.general_desc or PhoneNumberDesc()
        start = f"(?={region.leading_digits or ''})(?=(?:{general.national_number_pattern})\\Z)"
        for length in general.possible_length:
            either = "|".join(f"(?:{kind.national_number_pattern})" for kind in kinds if _has(kind, length))
            if either:
                by_length.setdefault(length, []).append(f"{start}(?:{either})")
    return {length: re.compile("|".join(found)) for length, found in by_length.items()}


def _has(kind: PhoneNumberDesc, length: int) -> bool:
    """Whether there are numbers of a kind with a length; a kind without lengths has those of its region."""
    return bool(kind.national_number_pattern) and length in (kind.possible_length or (length,))
