"""Faults, cross-origin requests, mirrors and the words for what happened (waypoint-facts 10, 12.1, 15)."""

from __future__ import annotations

import pytest

from proto.mycelia import waypoint_pb2 as pb
from tests.waypoint.state.builders import entry, needs_re2, request, rule
from waypoint.state import flags
from waypoint.state.cors import answer_preflight, is_allowed_origin, is_preflight, response_headers
from waypoint.state.fault import NO_FAULT, inject
from waypoint.state.flags import Flag, LocalAnswer
from waypoint.state.mirror import mirrored
from waypoint.state.request import RequestFacts
from waypoint.state.rules import Cors, Fault, Share

HALF = Share(50, 100)
ALWAYS = Share(1, 1)


# --- faults ---


@pytest.mark.parametrize(
    ("fault", "randoms", "delay_s", "status"),
    [
        (Fault(), (0.0, 0.0), 0.0, None),
        (Fault(delay_s=2.0, abort_status=503), (0.0, 0.0), 0.0, None),  # no share is never
        (Fault(HALF, 2.0), (0.49, 0.0), 2.0, None),
        (Fault(HALF, 2.0), (0.5, 0.0), 0.0, None),
        (Fault(abort_share=HALF, abort_status=503), (0.0, 0.49), 0.0, 503),
        (Fault(abort_share=HALF, abort_status=503), (0.0, 0.5), 0.0, None),
        (Fault(HALF, 2.0, HALF, 503), (0.1, 0.1), 2.0, 503),
        (Fault(HALF, 2.0, HALF, 503), (0.9, 0.1), 0.0, 503),
        (Fault(abort_share=Share(0, 100), abort_status=503), (0.0, 0.0), 0.0, None),
        (Fault(abort_share=Share(1, 1_000_000), abort_status=503), (0.0, 0.0000009), 0.0, 503),
        (Fault(abort_share=Share(1, 1_000_000), abort_status=503), (0.0, 0.000002), 0.0, None),
    ],
)
def test_delay_and_abort_have_their_own_shares(
    fault: Fault, randoms: tuple[float, float], delay_s: float, status: int | None
) -> None:
    injected = inject(fault, *randoms)
    assert injected.delay_s == delay_s
    assert (injected.abort and injected.abort.status) == status
    assert (injected is NO_FAULT) is (delay_s == 0.0 and status is None)


def test_an_abort_says_what_it_is() -> None:
    abort = inject(Fault(abort_share=ALWAYS, abort_status=418), 0.9, 0.9).abort
    assert abort == LocalAnswer(418, b"fault filter abort", Flag.FAULT_INJECTED, "fault_filter_abort")


@pytest.mark.parametrize(("is_grpc", "grpc_status"), [(True, 14), (False, None)])
def test_an_abort_with_a_grpc_status(is_grpc: bool, grpc_status: int | None) -> None:
    abort = inject(Fault(abort_share=ALWAYS, abort_grpc_status=14), 0.0, 0.0, is_grpc=is_grpc).abort
    assert abort is not None
    assert (abort.status, abort.grpc_status) == (503, grpc_status)


# --- mirrors ---


@pytest.mark.parametrize(
    ("random", "services"),
    [(0.0, ["shop/all", "shop/half"]), (0.49, ["shop/all", "shop/half"]), (0.5, ["shop/all"])],
)
def test_each_mirror_takes_its_share(random: float, services: list[str]) -> None:
    def to(service: str, failure_status: int = 0) -> pb.Backend:
        return pb.Backend(weight=1, service=service, port=80, failure_status=failure_status)

    message = rule()
    message.mirrors.add(backend=to("shop/all"))
    message.mirrors.add(backend=to("shop/half"), share=pb.Fraction(numerator=50))
    message.mirrors.add(backend=to("shop/none"), share=pb.Fraction(numerator=0, denominator=100))
    message.mirrors.add(backend=to("shop/invalid", failure_status=500))
    chosen = mirrored(entry(message).rule.mirrors, lambda: random)
    assert [backend.service for backend in chosen] == services


# --- cross-origin requests ---


def cors(*origins: str, **fields: object) -> Cors:
    message = pb.Cors(allow_origins=[pb.StringMatch(exact=origin) for origin in origins], **fields)  # type: ignore[arg-type]
    compiled = entry(rule(cors=message)).rule.cors
    assert compiled is not None
    return compiled


def preflight(origin: str = "https://a.example", method: str = "PUT", headers: str = "") -> RequestFacts:
    lines = [(b"origin", origin.encode()), (b"access-control-request-method", method.encode())]
    if headers:
        lines.append((b"access-control-request-headers", headers.encode()))
    return request("/", *lines, method="OPTIONS")


@pytest.mark.parametrize(
    ("allowed", "origin", "is_allowed"),
    [
        ("*", "https://a.example", True),
        ("*", "null", True),
        ("https://a.example", "https://a.example", True),
        ("https://a.example", "http://a.example", False),
        ("https://a.example", "https://a.example:8443", False),
        ("https://a.example", "https://a.example.evil.example", False),
        ("https://*.example", "https://a.example", True),
        ("https://*.example", "https://a.b.example", True),
        ("https://*.example", "https://.example", False),
        ("https://*.example", "https://example", False),
        ("https://*.example", "https://aexample", False),
        ("https://*.example", "http://a.example", False),
        ("https://*.example:8443", "https://a.example:8443", True),
        ("https://*.example", "https://a.example:8443", False),
        ("https://*", "https://a.example", True),
    ],
)
def test_which_origins_are_allowed(allowed: str, origin: str, is_allowed: bool) -> None:
    assert is_allowed_origin(cors(allowed), origin.encode()) is is_allowed


@needs_re2
@pytest.mark.parametrize(
    ("origin", "is_allowed"), [("https://ab.example", True), ("https://ab.examples", False)]
)
def test_an_origin_by_expression(origin: str, is_allowed: bool) -> None:
    message = pb.Cors(allow_origins=[pb.StringMatch(regex=r"https://[a-z]+\.example")])
    compiled = entry(rule(cors=message)).rule.cors
    assert compiled is not None
    assert is_allowed_origin(compiled, origin.encode()) is is_allowed


@pytest.mark.parametrize(
    ("facts", "is_one"),
    [
        (preflight(), True),
        (request("/", (b"origin", b"https://a"), method="OPTIONS"), False),
        (request("/", (b"access-control-request-method", b"PUT"), method="OPTIONS"), False),
        (request("/", *preflight().headers, method="GET"), False),
    ],
)
def test_what_is_a_preflight(facts: RequestFacts, is_one: bool) -> None:
    assert is_preflight(facts) is is_one


A = (b"access-control-allow-origin", b"https://a.example")
CREDENTIALS = (b"access-control-allow-credentials", b"true")


@pytest.mark.parametrize(
    ("policy", "facts", "headers"),
    [
        (cors("*"), preflight(), (A,)),
        (
            cors("*", allow_methods=["GET", "PUT"], allow_headers=["x", "y"], max_age={"seconds": 60}),
            preflight(),
            (
                A,
                (b"access-control-allow-methods", b"GET,PUT"),
                (b"access-control-allow-headers", b"x,y"),
                (b"access-control-max-age", b"60"),
            ),
        ),
        (
            cors("*", allow_methods=["*"], allow_headers=["*"]),
            preflight(headers="x-a"),
            (A, (b"access-control-allow-methods", b"*"), (b"access-control-allow-headers", b"*")),
        ),
        (
            cors("*", allow_methods=["*"], allow_headers=["*"], allow_credentials=True),
            preflight(headers="x-a"),
            (
                A,
                CREDENTIALS,
                (b"access-control-allow-methods", b"PUT"),
                (b"access-control-allow-headers", b"x-a"),
            ),
        ),
        (cors("*", allow_headers=["*"], allow_credentials=True), preflight(), (A, CREDENTIALS)),
        (cors("https://b.example"), preflight(), ()),
    ],
)
def test_a_preflight_is_answered_here(
    policy: Cors, facts: RequestFacts, headers: tuple[tuple[bytes, bytes], ...]
) -> None:
    answer = answer_preflight(policy, facts)
    assert answer is not None
    assert (answer.status, answer.headers, answer.body) == (200, headers, b"")


def test_a_preflight_of_another_origin_is_forwarded_if_told_so() -> None:
    policy = cors("https://b.example", forwards_unmatched_preflights=True)
    assert answer_preflight(policy, preflight()) is None
    assert answer_preflight(policy, request()) is None


@pytest.mark.parametrize(
    ("policy", "origin", "headers"),
    [
        (cors("*"), b"https://a.example", (A,)),
        (cors("*", allow_credentials=True), b"https://a.example", (A, CREDENTIALS)),
        (
            cors("*", expose_headers=["x", "y"]),
            b"https://a.example",
            (A, (b"access-control-expose-headers", b"x,y")),
        ),
        (cors("*", expose_headers=["*"], allow_credentials=True), b"https://a.example", (A, CREDENTIALS)),
        (cors("https://b.example"), b"https://a.example", ()),
        (cors("*"), None, ()),
    ],
)
def test_a_real_answer_gets_the_grant(
    policy: Cors, origin: bytes | None, headers: tuple[tuple[bytes, bytes], ...]
) -> None:
    assert response_headers(policy, origin) == headers


# --- words ---


@pytest.mark.parametrize(
    ("http_status", "grpc_status"),
    [
        (400, 13),
        (401, 16),
        (403, 7),
        (404, 12),
        (429, 14),
        (502, 14),
        (503, 14),
        (504, 14),
        (500, 2),
        (418, 2),
    ],
)
def test_what_an_answer_made_here_is_to_a_grpc_client(http_status: int, grpc_status: int) -> None:
    answer = flags.as_grpc(LocalAnswer(http_status, b"text", Flag.NONE, "why"))
    assert (answer.grpc_status, answer.details) == (grpc_status, "why")
    assert flags.as_grpc(answer) is answer


@pytest.mark.parametrize(
    ("answer", "status", "flag", "details"),
    [
        (flags.NO_ROUTE, 404, "NR", "route_not_found"),
        (flags.NO_HEALTHY_UPSTREAM, 503, "UH", "no_healthy_upstream"),
        (flags.UPSTREAM_OVERFLOW, 503, "UO", "overflow"),
        (flags.REQUEST_TIMEOUT, 504, "UT", "response_timeout"),
        (flags.PER_TRY_TIMEOUT, 504, "UT", "upstream_per_try_timeout"),
        (flags.NO_BACKEND, 500, "NC", "cluster_not_found"),
        (flags.RATE_LIMITED, 429, "RL", "request_rate_limited"),
        (flags.invalid_backend(500, "no Service", is_grpc=False), 500, "NC", "invalid_backend{no Service}"),
    ],
)
def test_answers_made_here_carry_a_flag_and_details(
    answer: LocalAnswer, status: int, flag: str, details: str
) -> None:
    assert (answer.status, answer.flag, answer.details) == (status, flag, details)


def test_an_invalid_backend_is_unavailable_to_a_grpc_client() -> None:
    assert flags.invalid_backend(500, "", is_grpc=True).grpc_status == 14


def test_details_that_take_more() -> None:
    assert flags.reset_before_response("connection_timeout") == (
        "upstream_reset_before_response_started{connection_timeout}"
    )
    assert flags.reset_after_response("reset") == "upstream_reset_after_response_started{reset}"
    assert flags.denied_by_policy("") == "rbac_access_denied_matched_policy[none]"
    assert flags.http2_violation("x") == "http2.violation.x"
    assert (flags.OVERLOADED in flags.UPSTREAM_OVERFLOW.headers) is True
