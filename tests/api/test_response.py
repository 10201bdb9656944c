"""Parsing a response: a page or a refusal with its kind, decided without I/O from status, headers and body."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl.api.redact import SHOWN
from etl.api.response import ApiFailure, FailureKind, HttpResponse, Page, Row, parse_response, server_time

CONTACTS = [
    {"_id": "65aa0000000000000000a001", "createdAt": "2025-01-01T00:00:00.000Z", "isContact": True},
    {
        "_id": "65aa0000000000000000a002",
        "profile": {"userDetails": {"name": 'Zoë "Z" \\ 😀'}},
        "tags": ["a", {"b": [1]}],
    },
    {"_id": 7, "lastSeenAt": 1736071200, "__v": 0},
]
GOOD = {"success": True, "message": "ok", "code": 200, "data": CONTACTS}
MALFORMED = "Argument passed in must be a single String of 12 bytes or a string of 24 hex characters"


def body(**fields: object) -> bytes:
    """The good response with these fields replaced."""
    return json.dumps({**GOOD, **fields}, ensure_ascii=False).encode()


def judged(content: bytes, status: int = 200, **headers: str) -> Page | ApiFailure:
    """The result of parsing a response with this body."""
    return parse_response(
        HttpResponse(status, {name.replace("_", "-"): value for name, value in headers.items()}, content)
    )


def page(content: bytes, **headers: str) -> Page:
    """The response, which must be a page."""
    verdict = judged(content, **headers)
    assert isinstance(verdict, Page)
    return verdict


def refusal(content: bytes, status: int = 200, **headers: str) -> ApiFailure:
    """The response, which must be a failure."""
    verdict = judged(content, status, **headers)
    assert isinstance(verdict, ApiFailure)
    return verdict


def test_a_good_answer_is_a_page() -> None:
    """A page keeps the body unchanged, the row fields that the fetcher needs, and the server's clock."""
    verdict = page(body(), Date="Sun, 05 Jan 2025 10:00:00 GMT")
    assert verdict.body == body()
    assert [bytes(row.contact_id) for row in verdict.rows] == [
        b'"65aa0000000000000000a001"',
        b'"65aa0000000000000000a002"',
        b"7",
    ]
    assert verdict.rows[0].created_at == "2025-01-01T00:00:00.000Z"
    assert verdict.rows[0].is_contact is True
    assert verdict.date == 1_736_071_200_000
    assert verdict.total is None


STATUSES = {
    201: FailureKind.GARBLED,
    204: FailureKind.GARBLED,
    301: FailureKind.CONTRACT,
    302: FailureKind.CONTRACT,
    307: FailureKind.CONTRACT,
    308: FailureKind.CONTRACT,
    400: FailureKind.CONTRACT,
    404: FailureKind.CONTRACT,
    407: FailureKind.UNREACHABLE,
    408: FailureKind.THROTTLED,
    413: FailureKind.CONTRACT,
    422: FailureKind.CONTRACT,
    425: FailureKind.THROTTLED,
    429: FailureKind.THROTTLED,
    500: FailureKind.UNAVAILABLE,
    502: FailureKind.UNAVAILABLE,
    503: FailureKind.THROTTLED,
    504: FailureKind.UNAVAILABLE,
    511: FailureKind.BLOCKED,
    522: FailureKind.UNAVAILABLE,
    599: FailureKind.UNAVAILABLE,
}
FOREIGN = [
    b"",
    b"Forbidden",
    b"<html>Bad Gateway</html>",
    b"\xef\xbb\xbf<!DOCTYPE html>",
    b"{}",
    b"[1]",
    b'"no"',
    b"\xff\xfe",
]


@pytest.mark.parametrize(("status", "kind"), STATUSES.items())
@pytest.mark.parametrize("content", [*FOREIGN, body()])
def test_a_status_decides_whatever_the_body_says(status: int, kind: FailureKind, content: bytes) -> None:
    """Most statuses are a refusal of their kind, even if the body is empty, HTML or a perfect page (A4, A5, N18)."""
    verdict = refusal(content, status)
    assert verdict.kind is kind
    assert verdict.status == status
    assert str(status) in verdict.message


OWN = [
    {"success": False, "message": "Unauthorized", "code": 401},
    {"success": False, "message": ""},
    {"statusCode": 401, "message": "Unauthorized"},
    {"statusCode": 401, "message": ["no token"], "error": "Unauthorized"},
    {"status": 401, "message": "jwt expired"},
    {"message": "Unauthorized"},
    {"message": {"message": "Unauthorized"}},
    {"code": "401"},
    {"success": True, "message": "ok", "code": 200, "data": [], "requestId": "x"},
]
"""Refusals in the format of the API, or of a framework that it may be built with."""
OTHERS = [
    {"error": "blocked", "ray": "8f0"},
    {"error": "Unauthorized"},
    {"detail": "Access denied"},
    {"type": "about:blank", "title": "Error 1020: Access denied", "status": 403, "detail": "blocked", "ray_id": "8f0"},
    {"success": False, "message": "blocked", "Ray-ID": "8f0"},
    {"message": "The requested URL was rejected", "supportID": "17"},
    {"message": None, "incident_id": 5},
    {"message": ""},
    {"message": []},
    {"code": 200},
    {"url": "https://captcha.example.com/"},
]
"""Refusals in the format of firewalls and gateways."""


@pytest.mark.parametrize("told", OWN, ids=json.dumps)
def test_a_token_is_refused_in_the_envelope_of_the_api(told: dict[str, object]) -> None:
    """A 401 or 403 in the API's own format is about the token; other statuses keep their meaning (A1, A4, A49)."""
    content = json.dumps(told).encode()
    kinds = {401: FailureKind.AUTH, 403: FailureKind.AUTH if told != {"code": "401"} else FailureKind.BLOCKED}
    assert {status: refusal(content, status).kind for status in kinds} == kinds
    if "code" not in told:
        assert {refusal(content, status).kind for status in (405, 406, 409, 451)} == {FailureKind.CONTRACT}


@pytest.mark.parametrize("status", [401, 402, 403, 405, 406, 409, 418, 444, 451, 499])
@pytest.mark.parametrize("content", [*FOREIGN, *(json.dumps(told).encode() for told in OTHERS)])
def test_what_stands_in_front_of_the_api_says_nothing_of_the_token(status: int, content: bytes) -> None:
    """HTML, text, an empty body or foreign JSON comes from a firewall, a proxy or a captive portal (A1, A4, N15)."""
    verdict = refusal(content, status)
    assert verdict.kind is FailureKind.BLOCKED
    assert f"HTTP {status}: something in front of the API" in verdict.message
    assert "firewall" in verdict.message
    assert "base_url and the token" in verdict.hint


@pytest.mark.parametrize("header", ["cf-mitigated", "x-amzn-waf-action"])
def test_a_firewall_that_speaks_like_the_api_is_known_by_its_header(header: str) -> None:
    """A firewall's block page may be JSON with a message, too; its header gives it away (A4)."""
    verdict = parse_response(HttpResponse(403, {header: "challenge"}, json.dumps(OWN[0]).encode()))
    assert isinstance(verdict, ApiFailure)
    assert verdict.kind is FailureKind.BLOCKED


@pytest.mark.parametrize("status", [429, 500, 502, 503, 520, 525, 530])
def test_html_beside_a_failure_points_to_what_stands_in_front(status: int) -> None:
    """The status keeps its kind; an HTML body adds a hint at its likely origin, the API's format does not (N15)."""
    assert "in front of the API" in refusal(b"<html>cf-ray</html>", status).hint
    assert refusal(json.dumps(OWN[0]).encode(), status).hint == ""


def test_a_refusal_under_200_is_about_the_token_in_the_envelope_of_the_api_alone() -> None:
    """A gateway may report its 403 in the body of a 200 (A11)."""
    assert refusal(b'{"status":403,"error":"blocked"}').kind is FailureKind.BLOCKED
    assert refusal(b'{"status":403,"message":"no"}').kind is FailureKind.AUTH


@pytest.mark.parametrize("status", [408, 425, 429, 503])
def test_the_wait_a_server_asks_for_is_kept(status: int) -> None:
    """`Retry-After` is passed on unchanged; the caller compares it with the clock (A5)."""
    assert refusal(b"", status, Retry_After="17").retry_after == "17"
    assert refusal(b"", status).retry_after is None


def test_a_malformed_token_is_an_authentication_failure() -> None:
    """The 400 with the ObjectId cast error, KNOWN from this API, means the token, not the request (A48)."""
    for status, code in [(400, 400), (200, 400), (200, 200)]:
        content = json.dumps({"success": False, "message": MALFORMED, "code": code}).encode()
        verdict = refusal(content, status)
        assert verdict.kind is FailureKind.AUTH
        assert "malformed" in verdict.message


def test_a_lost_authtype_header_is_hinted_at() -> None:
    """A 401 names the two causes: the token, and the undocumented header that a proxy may strip (A49)."""
    assert "authtype" in refusal(body(success=False, code=401), 401).message


TOLD = [
    ({"success": False, "code": 401}, FailureKind.AUTH),
    ({"success": False, "code": 429}, FailureKind.THROTTLED),
    ({"success": False, "code": 500}, FailureKind.UNAVAILABLE),
    ({"success": False, "code": 422}, FailureKind.CONTRACT),
    ({"success": False, "code": 200}, FailureKind.CONTRACT),
    ({"success": False, "code": None}, FailureKind.CONTRACT),
    ({"success": True, "code": 401, "data": []}, FailureKind.AUTH),
    ({"success": True, "code": 500, "data": []}, FailureKind.UNAVAILABLE),
    ({"code": "503", "data": []}, FailureKind.THROTTLED),
    ({"success": None, "code": None, "status": 403, "data": []}, FailureKind.AUTH),
]


@pytest.mark.parametrize(("fields", "kind"), TOLD)
def test_a_200_that_tells_of_a_failure_is_one(fields: dict[str, object], kind: FailureKind) -> None:
    """`success: false` or a failing code under status 200 is a refusal, even with an empty list (A11, N8)."""
    assert refusal(body(**fields)).kind is kind


SIGNS = [
    *({"success": no} for no in ("false", "False", 0, "0", "no", "", [], {})),
    *({"ok": no} for no in (False, "false", 0)),
    *({"error": words} for words in ("timeout", True, 1, {"message": "timeout"}, {"reason": 7}, ["timeout"])),
    *({"errors": words} for words in ([{"message": "timeout"}], ["timeout"], {"createdAt": "no date"}, "timeout")),
    *({"status": word} for word in ("error", "ERROR", "fail", "Failed", "failure", "ko", "internal_error", False)),
    {"code": "ERR_TIMEOUT"},
    {"success": True, "message": "ok", "code": 200, "error": "timeout"},
]
"""Parts of an envelope that report a failure without an HTTP code."""


def both_ways(fields: dict[str, object], data: list[object]) -> list[bytes]:
    """A response for the strict parser, and one that only the tolerant parser accepts."""
    return [json.dumps({**fields, "data": rows}).encode() for rows in (data, [*data, {"_id": "\ud83d"}])]


@pytest.mark.parametrize("fields", SIGNS, ids=json.dumps)
def test_whatever_tells_of_a_failure_is_no_page(fields: dict[str, object]) -> None:
    """An empty or partial list next to an error is no more proof of completeness than a 500 (A11, A55)."""
    for data in ([], [{"_id": "a"}]):
        for content in both_ways(fields, data):
            assert refusal(content, Retry_After="9").kind is FailureKind.UNAVAILABLE
            assert refusal(content, Retry_After="9").retry_after == "9"


CODES = [
    ({"statusCode": 503}, FailureKind.THROTTLED),
    ({"httpStatus": "500"}, FailureKind.UNAVAILABLE),
    ({"status": "502 Bad Gateway"}, FailureKind.UNAVAILABLE),
    ({"status": 408}, FailureKind.THROTTLED),
    ({"code": 500.0}, FailureKind.UNAVAILABLE),
    ({"code": 200, "statusCode": 429}, FailureKind.THROTTLED),
    ({"success": True, "status": "success", "statusCode": 401}, FailureKind.AUTH),
    ({"error": {"code": 429, "message": "too fast"}}, FailureKind.THROTTLED),
    ({"code": 50013}, FailureKind.UNAVAILABLE),
    ({"code": int("9" * 4000)}, FailureKind.UNAVAILABLE),
    ({"success": "false", "code": 422}, FailureKind.CONTRACT),
]


@pytest.mark.parametrize(("fields", "kind"), CODES)
def test_a_failing_code_counts_wherever_it_stands(fields: dict[str, object], kind: FailureKind) -> None:
    """`code`, `status`, `statusCode`, `httpStatus` and an error's `code` mean the same as an HTTP status (A5, A11)."""
    for content in both_ways(fields, []):
        assert refusal(content).kind is kind


def test_a_code_that_no_machine_type_holds_is_a_failure() -> None:
    """A code of five thousand digits is a failure and does not crash the parser (A11, A32)."""
    assert refusal(b'{"data":[],"code":' + b"9" * 5000 + b"}").kind is FailureKind.UNAVAILABLE


HARMLESS = [
    {},
    *({"success": yes} for yes in (True, None, 1, "true")),
    *({"status": word} for word in ("success", "ok", "OK", 200, "200", True, None, "OPEN", "", {"code": 0}, "tokyo")),
    *({"error": nothing} for nothing in (None, False, "", [], {}, 0, "false")),
    *({"errors": nothing} for nothing in (None, [], {})),
    *({"message": text} for text in ("error", "no errors", "fail", None, 500, ["failed"])),
    *({"code": code} for code in (0, 1, 200, "OK", None, 1.5)),
    {"ok": True, "statusCode": 200, "httpStatus": "200 OK"},
    {"meta": {"error": "none of ours"}, "failed": 0, "requestId": "ERROR", "pagination": {"page": 1}},
]


@pytest.mark.parametrize("fields", HARMLESS, ids=json.dumps)
def test_a_harmless_envelope_is_a_page(fields: dict[str, object]) -> None:
    """Success words, message texts, empty errors and unknown fields are not failures, in either parser (A37, A55)."""
    for content in both_ways(fields, [{"_id": "a"}]):
        assert page(content).rows[0].contact_id == msgspec.Raw(b'"a"')


@pytest.mark.parametrize(
    "fields", [{"error": "{}"}, {"error": {"message": "{}"}}, {"errors": ["{}"]}, {"errors": [{"message": "{}"}]}]
)
def test_what_an_error_says_is_redacted(fields: dict[str, object]) -> None:
    """An error's text, in any field, is reported without the token and personal data (A11, X1, X2)."""
    words = "boom, token canary-5f0c1e, ada@example.com, +44 20 7946 0958"
    content = json.dumps({**fields, "data": []}).replace("{}", words).encode()
    verdict = parse_response(HttpResponse(200, {}, content, secret="canary-5f0c1e"))  # noqa: S106 - invented
    assert isinstance(verdict, ApiFailure)
    assert verdict.message == "HTTP 200 that reports a failure: boom, token …, … …"


@pytest.mark.parametrize("data", [b'["lastSeenAt must be a date"]', b"[null]", b"[[],5]"])
def test_a_list_of_anything_but_contacts_is_no_page(data: bytes) -> None:
    """Validation errors arrive as strings in `data`: a list without any object is not a page (A12, A55)."""
    assert refusal(b'{"success":true,"code":200,"data":' + data + b"}").kind is FailureKind.GARBLED
    assert refusal(b'{"success":false,"code":400,"data":' + data + b"}").kind is FailureKind.CONTRACT


def test_a_throttling_told_under_200_keeps_its_wait() -> None:
    """A 429 inside a 200 obeys `Retry-After` like any other (A5, A11)."""
    assert refusal(body(success=False, code=429), Retry_After="9").retry_after == "9"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"  \n",
        b"{}",
        b"[]",
        b"null",
        b"5",
        b'"data"',
        b'{"data":null}',
        b'{"success":true,"message":"ok","code":200}',
        b'{"success":true,"data":{"users":[]}}',
        b'{"success":true,"data":"none"}',
        json.dumps(CONTACTS).encode(),
    ],
)
def test_json_that_is_no_envelope_is_refused(content: bytes) -> None:
    """Valid JSON without a list in `data` is retried and never taken for an empty page (N8, A12, A55)."""
    assert refusal(content).kind is FailureKind.GARBLED


@pytest.mark.parametrize("content", [b'{"status":200,"message":"ok","data":[]}', b'{"data":[]}'])
def test_the_known_variants_of_the_envelope_are_pages(content: bytes) -> None:
    """`{status, message, data}` is the vendor's other envelope; only a list in `data` is required (A55)."""
    assert page(content).rows == []


def test_no_prefix_of_a_page_is_a_page() -> None:
    """A body cut at any byte is rejected as a whole (N5, N7)."""
    whole = body()
    assert all(refusal(whole[:length]).kind is FailureKind.GARBLED for length in range(len(whole)))


def test_no_page_has_anything_behind_it() -> None:
    """Two concatenated responses, or a page followed by garbage, are rejected (N7)."""
    for behind in (b"x", b"{}", b",", body()):
        assert refusal(body() + behind).kind is FailureKind.GARBLED


@pytest.mark.parametrize("lead", [b"", b"\n  ", b"\xef\xbb\xbf"])
def test_html_under_200_is_named(lead: bytes) -> None:
    """A login or maintenance page is reported as HTML and never quoted (N15)."""
    verdict = refusal(lead + b"<!DOCTYPE html><html>Ada Example</html>", Content_Type="text/html")
    assert (verdict.kind, verdict.message) == (FailureKind.GARBLED, "an HTML page instead of JSON")
    assert "captive portal in front of the API" in verdict.hint


def test_another_content_type_does_no_harm() -> None:
    """JSON sent as text or as HTML is accepted as a page (N16)."""
    assert len(page(body(), Content_Type="text/html; charset=utf-8").rows) == 3


def test_a_byte_order_mark_is_dropped() -> None:
    """A page with a BOM is accepted without it (N17)."""
    assert page(b"\xef\xbb\xbf" + body()).body == body()


@pytest.mark.parametrize("charset", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_wide_text_is_refused(charset: str) -> None:
    """UTF-16 and UTF-32 are rejected, declared or not (N17)."""
    content = body().decode().encode(charset)
    assert refusal(content).kind is FailureKind.GARBLED
    assert refusal(content, Content_Type=f"application/json; charset={charset}").kind is FailureKind.GARBLED


def test_a_declared_latin_1_is_refused() -> None:
    """Text declared as Latin-1 would be published with every accent broken, so it is rejected by name (N17)."""
    content = body(data=[{"_id": "a", "name": "Zoë"}]).decode().encode("latin-1")
    verdict = refusal(content, Content_Type='application/json; charset="ISO-8859-1"')
    assert (verdict.kind, verdict.message) == (FailureKind.GARBLED, "a response in ISO-8859-1 instead of UTF-8")


def test_utf_8_under_a_wrong_label_is_accepted() -> None:
    """Valid UTF-8 that a proxy mislabels is accepted (N16)."""
    assert len(page(body(), Content_Type="application/json; charset=latin-1").rows) == 3


def test_a_stray_byte_does_not_cost_the_page() -> None:
    """Invalid UTF-8 in one text leaves the page readable: the normalizer replaces it by U+FFFD (A35)."""
    content = body().replace("Zoë".encode(), b"Zo\xeb")
    assert [bytes(row.contact_id) for row in page(content).rows] == [bytes(row.contact_id) for row in page(body()).rows]


ODD_IDS = [
    (b'{"_id":null}', b"null"),
    (b"{}", b"null"),
    (b'{"_id":""}', b'""'),
    (b'{"_id":true}', b"true"),
    (b'{"_id":["a"]}', b'["a"]'),
    (b'{"_id":{"$oid":"a"}}', b'{"$oid":"a"}'),
    (b'{"_id":"\\ud83d"}', '"\N{REPLACEMENT CHARACTER}"'.encode()),
    (b'{"_id":12345678901234567890123}', b"12345678901234567890123"),
    (b"5", b"null"),
    (b"null", b"null"),
    (b'"contact"', b"null"),
    (b"[]", b"null"),
]


@pytest.mark.parametrize(("row", "contact_id"), ODD_IDS)
def test_a_row_without_a_good_id_still_counts(row: bytes, contact_id: bytes) -> None:
    """Every element of the list counts as a row, so a bad one never makes a page look short (A25, A32)."""
    rows = page(b'{"success":true,"data":[{"_id":"a"},' + row + b"]}").rows
    assert len(rows) == 2
    assert json.loads(bytes(rows[1].contact_id)) == json.loads(contact_id)


def test_a_repeated_key_counts_with_its_last_value() -> None:
    """If a contact has two ids, both parsers take the last one (A36)."""
    for rest in (b'"n":1', b'"n":"\\ud83d"'):
        rows = page(b'{"success":true,"data":[{"_id":"a","_id":"b",' + rest + b"}]}").rows
        assert [bytes(row.contact_id) for row in rows] == [b'"b"']


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"-Infinity", b"01", b"+1", b".5", b"0x10"])
def test_what_is_no_json_number_is_refused(number: bytes) -> None:
    """JSON is parsed strictly: NaN and Infinity are rejected (A32)."""
    assert refusal(b'{"success":true,"data":[{"_id":"a","x":' + number + b"}]}").kind is FailureKind.GARBLED


@pytest.mark.parametrize("number", [b"1e400", b"-0", b"9223372036854775808", b"9" * 5000, b"1" + b"0" * 400 + b".5"])
def test_a_number_of_any_size_is_json(number: bytes) -> None:
    """A number that does not fit a machine type is left to the normalizer, which keeps its text (A32)."""
    assert len(page(b'{"success":true,"data":[{"_id":"a","x":' + number + b"}]}").rows) == 1


@pytest.mark.parametrize("opening", [b"[", b'{"data":[', b'{"data":[{"a":', b'{"message":['])
def test_deep_nesting_is_refused(opening: bytes) -> None:
    """A hundred thousand brackets are rejected without a crash (A33)."""
    assert refusal(opening * 100_000).kind is FailureKind.GARBLED
    deep = b"[" * 100_000 + b"]" * 100_000
    assert refusal(b'{"success":true,"data":[{"_id":"a","x":' + deep + b"}]}").kind is FailureKind.GARBLED


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
contacts = st.dictionaries(
    st.sampled_from(["_id", "createdAt", "lastSeenAt", "isContact", "x"]), json_values, max_size=4
)


def facts(row: Row) -> tuple[object, ...]:
    """The fields that two ways of reading a row must agree on, numbers as text."""
    values = (row.created_at, row.last_seen_at, row.is_contact)
    return json.loads(bytes(row.contact_id)), *(
        json.loads(json.dumps(v), parse_int=str, parse_float=str) for v in values
    )


@given(st.lists(contacts, max_size=4))
def test_both_ways_of_reading_agree(data: list[dict[str, object]]) -> None:
    """The tolerant parser, used for invalid UTF-8, returns the same rows as the strict one (A35)."""
    strict = page(json.dumps({"success": True, "data": data}).encode())
    whole = json.dumps({"success": True, "data": [*data, {"_id": "!"}]}).encode()
    tolerant = page(whole.removesuffix(b'"!"}]}') + b'"\xff"}]}')
    assert [facts(row) for row in tolerant.rows[:-1]] == [facts(row) for row in strict.rows]


@given(st.binary(max_size=200) | st.text(max_size=80).map(str.encode))
def test_no_body_breaks_the_judge(content: bytes) -> None:
    """Any bytes parse to a page or a refusal, never to an exception."""
    assert isinstance(judged(content), Page | ApiFailure)
    assert isinstance(judged(content, 400), ApiFailure)


@given(json_values)
def test_no_json_breaks_the_judge(document: object) -> None:
    """Any JSON is a page only if it is an object with a list in `data`."""
    verdict = judged(json.dumps(document).encode())
    listed = isinstance(document, dict) and isinstance(document.get("data"), list)
    assert isinstance(verdict, ApiFailure) or listed


@pytest.mark.parametrize(
    ("total", "told"), [(12, 12), (0, 0), (-1, -1), (None, None), ("12", None), (1.5, None), (True, None), ([12], None)]
)
def test_a_total_is_taken_only_as_a_whole_number(total: object, told: int | None) -> None:
    """A total of a type other than integer is ignored; whether it is correct is not decided here (A19)."""
    assert page(body(total=total)).total == told


def test_a_page_is_known_by_its_ids() -> None:
    """Two pages are the same if they list the same ids, in any order and with any other changes (A13, N24)."""
    shown = [[{"_id": "a", "n": 1}, {"_id": "b"}], [{"_id": "b"}, {"_id": "a", "n": 2}], [{"_id": "ab"}], [{"_id": 7}]]
    ids = [page(body(data=data)).ids for data in shown]
    assert ids == [{b'"a"', b'"b"'}, {b'"a"', b'"b"'}, {b'"ab"'}, {b"7"}]


MESSAGES = [
    ("no such\r\nfield\x1b[31m\u202e", "no such  field [31m "),
    ("mail ada@example.com today", "mail … today"),
    ("call +44 20 7946 0958 or 15550100", "call … or …"),
    ("x" * 5000, "x" * SHOWN),
]


@pytest.mark.parametrize(("said", "shown"), MESSAGES)
def test_a_servers_message_is_shown_short_and_clean(said: str, shown: str) -> None:
    """A message is shown on one line of at most 200 characters, without e-mails and phones (A4, X2, X9)."""
    for verdict in (refusal(body(message=said), 422), refusal(body(success=False, message=said))):
        assert verdict.message.endswith(f": {shown}")


@pytest.mark.parametrize("message", [None, 5, [], {}, ["name must be text"]])
def test_a_message_that_is_no_text_is_not_shown(message: object) -> None:
    """A message that is not a string is left out, and the failure is reported without it."""
    assert refusal(body(message=message), 400).message == "HTTP 400: the request is rejected"


def test_the_token_is_never_quoted() -> None:
    """A server that echoes the token does not get it into our message (X1)."""
    canary = "canary-5f0c1e"
    for status, fields in [(401, {}), (400, {}), (500, {}), (200, {"success": False}), (200, {"code": 401})]:
        content = body(message=f"Bearer {canary} is not valid: {canary}", **fields)
        reply = HttpResponse(status, {}, content, secret=canary)
        verdict = parse_response(reply)
        assert isinstance(verdict, ApiFailure)
        assert canary not in verdict.message
        assert "is not valid" in verdict.message
        assert canary not in repr(HttpResponse(status, {}, b"", secret=canary))


def test_a_token_cut_by_the_limit_leaves_no_piece() -> None:
    """The token is removed before the message is shortened, so that no part of it remains (X1)."""
    token = "canary" * 10
    verdict = parse_response(HttpResponse(500, {}, body(message="x" * (SHOWN - 10) + token), secret=token))
    assert isinstance(verdict, ApiFailure)
    assert "canary" not in verdict.message


DATES = [
    ("Sun, 05 Jan 2025 10:00:00 GMT", 1_736_071_200_000),
    ("Sun, 05 Jan 2025 10:00:00 -0000", 1_736_071_200_000),
    ("Sun, 05 Jan 2025 12:00:00 +0200", 1_736_071_200_000),
    ("Mon, 01 Jan 99999999999999999999 00:00:00 GMT", None),
    ("Mon, 99 Jan 2025 00:00:00 GMT", None),
    ("yesterday", None),
    ("", None),
]


@pytest.mark.parametrize(("text", "time"), DATES)
def test_the_servers_clock_is_read_from_its_date(text: str, time: int | None) -> None:
    """`Date` is read in any time zone; an unreadable one is ignored (N25)."""
    assert server_time({"Date": text}) == time


def test_no_date_is_no_clock() -> None:
    """Without `Date` the server's clock is unknown (N25)."""
    assert server_time({}) is None
    assert page(body()).date is None


@given(st.text(max_size=40) | st.from_regex(r"[A-Z][a-z]{2}, \d{1,20} [A-Z][a-z]{2} \d{1,20} \d\d:\d\d:\d\d [+-]\d{4}"))
def test_no_date_breaks_the_clock(text: str) -> None:
    """Any text in `Date` is a time or none."""
    time = server_time({"Date": text})
    assert time is None or isinstance(time, int)


def test_every_kind_of_refusal_has_a_status() -> None:
    """The tables above cover every kind of failure except those of requests that never reached a server."""
    assert set(FailureKind) - set(STATUSES.values()) == {FailureKind.STALE, FailureKind.AUTH}
