"""Response parser, normalizer, and the readers of manifests and configurations handle arbitrary bytes."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings

from tests.fuzz.mutation import CORPUS, mutated
from tests.fuzz.readers import READERS

CASES = sorted((path.parent.name, path.name) for path in CORPUS.glob("*/*"))
FUZZED = settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("reader", READERS)
def test_the_corpus(reader: str) -> None:
    """A32, A33, A36, N7, N8, P25: every stored input passes, including those that failed once."""
    names = [name for home, name in CASES if home == reader]
    assert names
    for name in names:
        try:
            READERS[reader]((CORPUS / reader / name).read_bytes())
        except Exception as error:
            raise AssertionError(name) from error


@FUZZED
@given(mutated("answers"))
def test_no_answer_is_anything_but_a_page_or_a_refusal(data: bytes) -> None:
    """A32, A33, A55, N7, N8, X12, X13: an accepted response can be normalized, and a failure never quotes the token."""
    READERS["answers"](data)


@FUZZED
@given(mutated("contacts"))
def test_every_contact_is_kept_or_rejected(data: bytes) -> None:
    """A30 to A36: both paths keep and reject the same contacts, and neither raises."""
    READERS["contacts"](data)


@FUZZED
@given(mutated("manifests"))
def test_a_manifest_is_ours_or_a_value_error(data: bytes) -> None:
    """P25: a damaged manifest raises ValueError, and no other error."""
    READERS["manifests"](data)


@FUZZED
@given(mutated("configurations"))
def test_a_configuration_is_good_or_told_to_be_wrong(data: bytes) -> None:
    """P12: a file is a valid configuration, or raises a usage error with a hint."""
    READERS["configurations"](data)
