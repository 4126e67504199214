"""What happens to header lists: tables."""

from __future__ import annotations

import uuid

import pytest

from transport.http2.events import Header
from transport.http_path import PathNormalization, Refusal
from waypoint.worker.answers import NO_ROUTE, RESPONSE_TIMEOUT, Answer
from waypoint.worker.failures import Cause, Failure, answer_to, is_safe_to_repeat
from waypoint.worker.headers import (
    Request,
    new_request_id,
    parse_grpc_timeout,
    read_request,
    read_response,
)
from waypoint.worker.sniff import PREFACE, Verdict, sniff


def request(*fields: Header, path: bytes = b"/", method: bytes = b"GET") -> list[Header]:
    return [(b":method", method), (b":scheme", b"http"), (b":authority", b"a"), (b":path", path), *fields]


def read(*fields: Header, path: bytes = b"/") -> Request:
    found = read_request(request(*fields, path=path))
    assert isinstance(found, Request)
    return found


@pytest.mark.parametrize(
    "name",
    [
        b"x-envoy-retry-on",
        b"x-envoy-max-retries",
        b"x-envoy-upstream-rq-timeout-ms",
        b"x-envoy-original-path",
        b"x-envoy-internal",
        b"x-envoy-decorator-operation",
        b"x-envoy-anything-new",
        b"x-envoy-peer-metadata",
        b"x-envoy-peer-metadata-id",
        b"x-forwarded-client-cert",
        b"x-forwarded-network",
        b"x-istio-source",
    ],
)
@pytest.mark.parametrize("forwarded", [(), ((b"x-forwarded-for", b"10.0.0.1"),)])
def test_what_a_client_may_not_say_is_dropped(name: bytes, forwarded: tuple[Header, ...]) -> None:
    headers = read((name, b"1"), *forwarded).headers
    ours = (b"x-request-id", b"x-forwarded-proto")
    assert [field for field in headers if field[0] not in ours] == list(forwarded)


@pytest.mark.parametrize(
    "field",
    [
        (b"x-forwarded-for", b"1.2.3.4, 10.0.0.1"),
        (b"authorization", b"Bearer x"),
        (b"cookie", b"a=1"),
        (b"x_underscore", b"1"),
        (b"content-length", b"0"),
        (b"te", b"trailers"),
        (b"expect", b"100-continue"),
        (b"traceparent", b"00-1-2-01"),
    ],
)
def test_the_rest_passes_unchanged(field: Header) -> None:
    assert field in read(field).headers


def test_duplicates_stay_separate_and_in_order() -> None:
    fields = [(b"x-a", b"1"), (b"x-b", b"2"), (b"x-a", b"3")]
    assert read(*fields).headers[:3] == fields


def test_a_request_id_is_made_if_there_is_none() -> None:
    found = read()
    assert uuid.UUID(found.request_id.decode()).version == 4
    assert (b"x-request-id", found.request_id) in found.headers
    assert new_request_id() != new_request_id()


def test_a_request_id_is_kept_once() -> None:
    found = read((b"x-request-id", b"mine"), (b"x-request-id", b"other"))
    assert [value for name, value in found.headers if name == b"x-request-id"] == [b"mine"]


@pytest.mark.parametrize(("sent", "left"), [(b"https", b"https"), (b"http", b"http"), (b"ftp", b"http")])
def test_forwarded_proto(sent: bytes, left: bytes) -> None:
    found = read((b"x-forwarded-proto", sent))
    assert [value for name, value in found.headers if name == b"x-forwarded-proto"] == [left]


def test_host_stands_in_for_a_missing_authority() -> None:
    found = read_request([(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/"), (b"host", b"there")])
    assert isinstance(found, Request)
    assert found.authority == b"there"
    assert (b"host", b"there") not in found.head()


@pytest.mark.parametrize(
    ("sent", "path", "query"),
    [
        (b"/a/../b?x=..", b"/b", b"x=.."),
        (b"/a%2Fb", b"/a%2Fb", None),
        (b"/%61dmin", b"/admin", None),
        (b"/a\\b", b"/a/b", None),
        (b"/a#b", b"/a", None),
        (b"/..", b"/", None),
        (b"/a?", b"/a", b""),
        (b"/a.b/c", b"/a.b/c", None),
    ],
)
def test_the_path_that_is_matched_is_the_one_that_is_sent(
    sent: bytes, path: bytes, query: bytes | None
) -> None:
    found = read(path=sent)
    assert (found.path, found.query) == (path, query)
    assert (b":path", found.target) in found.head()


def test_slashes_merge_where_that_is_asked_for() -> None:
    found = read_request(request(path=b"//a//b"), PathNormalization.MERGE_SLASHES)
    assert isinstance(found, Request)
    assert found.path == b"/a/b"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (request(path=b"/%00"), 400),
        (request(path=b"/%zz"), 400),
        ([(b":method", b"CONNECT"), (b":authority", b"a:80")], 404),
    ],
)
def test_what_has_no_one_meaning_is_refused(headers: list[Header], status: int) -> None:
    found = read_request(headers)
    assert isinstance(found, Refusal)
    assert found.status == status


@pytest.mark.parametrize(
    ("value", "is_grpc"),
    [
        (b"application/grpc", True),
        (b"application/grpc+proto", True),
        (b"application/grpc;x=1", True),
        (b"application/grpc-web", False),
        (b"application/json", False),
    ],
)
def test_what_is_grpc(value: bytes, is_grpc: bool) -> None:
    assert read((b"content-type", value)).is_grpc is is_grpc


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (b"1S", 1.0),
        (b"100m", 0.1),
        (b"2H", 7200.0),
        (b"5u", 5e-6),
        (b"123456789S", None),
        (b"S", None),
        (b"-1S", None),
    ],
)
def test_grpc_timeouts(value: bytes, seconds: float | None) -> None:
    assert parse_grpc_timeout(value) == pytest.approx(seconds)


def test_a_response_says_who_passed_it_on() -> None:
    sent = [
        (b":status", b"200"),
        (b"server", b"app"),
        (b"x-envoy-upstream-service-time", b"99"),
        (b"x-envoy-decorator-operation", b"op"),
        (b"x-envoy-peer-metadata", b"m"),
        (b"x-own", b"1"),
    ]
    assert read_response(sent, 3) == [
        (b":status", b"200"),
        (b"x-own", b"1"),
        (b"server", b"mycelia"),
        (b"x-envoy-upstream-service-time", b"3"),
    ]


# Answers


def test_a_grpc_client_gets_trailers_only() -> None:
    head, body = NO_ROUTE.head(is_grpc=True, is_bodiless=False)
    assert (b":status", b"200") in head
    assert (b"grpc-status", b"12") in head
    assert body == b""
    head, _ = RESPONSE_TIMEOUT.head(is_grpc=True, is_bodiless=False)
    assert (b"grpc-status", b"4") in head
    assert (b"grpc-message", b"upstream request timeout") in head


def test_a_grpc_message_is_percent_encoded() -> None:
    head, _ = Answer(503, "x", body="a%b\nü".encode()).head(is_grpc=True, is_bodiless=False)
    assert (b"grpc-message", b"a%25b%0A%C3%BC") in head


def test_head_has_the_length_of_the_body_that_is_not_sent() -> None:
    head, body = RESPONSE_TIMEOUT.head(is_grpc=False, is_bodiless=True)
    assert (b"content-length", b"24") in head
    assert body == b""


@pytest.mark.parametrize(
    ("cause", "status", "flag", "reason"),
    [
        (Cause.CONNECT_FAILURE, 503, "UF", "{connection_failure}"),
        (Cause.CONNECT_TIMEOUT, 503, "UF", "{connection_timeout}"),
        (Cause.NAME, 503, "DF", "dns_resolution_failure"),
        (Cause.REFUSED, 503, "UR", "{remote_refused_stream_reset}"),
        (Cause.STALE, 503, "UC", "{connection_termination}"),
        (Cause.CLOSED, 503, "UC", "{connection_termination}"),
        (Cause.RESET, 503, "UR", "{remote_reset}"),
        (Cause.PROTOCOL, 502, "UPE", "{protocol_error}"),
        (Cause.OVERFLOW, 503, "UO", "overflow"),
        (Cause.TRY_TIMEOUT, 504, "UT", "upstream_per_try_timeout"),
    ],
)
def test_answers_to_failures(cause: Cause, status: int, flag: str, reason: str) -> None:
    answer = answer_to(Failure(cause))
    assert (answer.status, answer.flag) == (status, flag)
    assert answer.details.endswith(reason)


@pytest.mark.parametrize("cause", list(Cause))
def test_only_the_provably_unprocessed_is_repeated(cause: Cause) -> None:
    unprocessed = cause in (Cause.CONNECT_FAILURE, Cause.CONNECT_TIMEOUT, Cause.NAME, Cause.REFUSED)
    assert is_safe_to_repeat(Failure(cause), b"POST") is unprocessed
    assert is_safe_to_repeat(Failure(cause), b"GET") is (unprocessed or cause is Cause.STALE)


# First bytes


@pytest.mark.parametrize(
    ("first", "verdict"),
    [
        (b"GET / HTTP/1.1\r\n", Verdict.HTTP1),
        (b"M-SEARCH * HTTP/1.1\r\n", Verdict.HTTP1),
        (b"GET / HTTP/1.0\r\n", Verdict.TCP),
        (b"GET / HTTP/2.0\r\n", Verdict.TCP),
        (b"GET /\r\n", Verdict.TCP),
        (b"get / HTTP/1.1\r\n", Verdict.TCP),
        (b"\x16\x03\x01", Verdict.TCP),
        (b"SSH-2.0-OpenSSH\r\n", Verdict.TCP),
        (b"*1\r\n$4\r\nPING\r\n", Verdict.TCP),
        (PREFACE, Verdict.HTTP2),
        (PREFACE + b"\0\0\0\4", Verdict.HTTP2),
        (b"PRI * HTTP/2.0\r\n\r\nXX", Verdict.TCP),
        (b"G" * 61_000, Verdict.TCP),
        (b"GET /" + b"a" * 61_440, Verdict.TCP),
    ],
)
def test_sniffing(first: bytes, verdict: Verdict) -> None:
    assert sniff(first, is_http_declared=False) is verdict


@pytest.mark.parametrize("whole", [b"GET /a?b HTTP/1.1\r\n", PREFACE])
def test_a_beginning_asks_for_more(whole: bytes) -> None:
    for cut in range(1, len(whole)):
        assert sniff(whole[:cut], is_http_declared=False) is Verdict.MORE


def test_on_a_declared_port_only_the_version_is_looked_for() -> None:
    assert sniff(b"\x16\x03", is_http_declared=True) is Verdict.HTTP1
    assert sniff(b"PRI * HT", is_http_declared=True) is Verdict.MORE
    assert sniff(PREFACE, is_http_declared=True) is Verdict.HTTP2


@pytest.mark.parametrize(
    ("sent", "seen"), [(b"secret.com.", b"secret.com"), (b"secret.com.:80", b"secret.com:80"), (b":", None)]
)
def test_a_host_has_one_spelling_whatever_protocol_it_came_by(sent: bytes, seen: bytes | None) -> None:
    fields = [(b":method", b"GET"), (b":scheme", b"http"), (b":authority", sent), (b":path", b"/")]
    found = read_request(fields)
    assert (found.authority if isinstance(found, Request) else None) == seen
