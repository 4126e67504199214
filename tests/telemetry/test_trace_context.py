"""Trace contexts: every format in and out, everything malformed, and who decides about sampling."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from telemetry.sampling import Sampling, decide
from telemetry.trace_context import (
    MAX_TRACESTATE_BYTES,
    NO_PARENT,
    Format,
    Header,
    Parent,
    child,
    extract,
    inject,
)

TRACE = b"4bf92f3577b34da6a3ce929d0e0e4736"
SHORT = TRACE[16:]
SPAN = b"00f067aa0ba902b7"
OLD = b"0123456789abcdef"
ID = b"6a2ba3f0-5c2b-4c7a-9d2a-0123456789ab"
W3C, MULTI, SINGLE = Format.W3C, Format.B3_MULTI, Format.B3_SINGLE


def parent_of(*headers: Header, preferred: Format = W3C) -> Parent:
    return extract([(b"accept", b"*/*"), *headers], preferred)


def b3(**fields: bytes) -> list[Header]:
    return [(b"x-b3-" + name.encode(), value) for name, value in fields.items()]


@pytest.mark.parametrize(
    ("value", "sampled"),
    [
        (b"00-%b-%b-01" % (TRACE, SPAN), True),
        (b"00-%b-%b-00" % (TRACE, SPAN), False),
        (b"00-%b-%b-03" % (TRACE, SPAN), True),
        (b"cc-%b-%b-01-more" % (TRACE, SPAN), True),
        (b" 00-%b-%b-01 " % (TRACE, SPAN), True),
    ],
)
def test_traceparent(value: bytes, *, sampled: bool) -> None:
    assert parent_of((b"traceparent", value)) == Parent(TRACE, SPAN, sampled, formats=W3C)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"00",
        b"ff-%b-%b-01" % (TRACE, SPAN),
        b"00-%b-%b-01-more" % (TRACE, SPAN),
        b"00-%b-%b-01" % (b"0" * 32, SPAN),
        b"00-%b-%b-01" % (TRACE, b"0" * 16),
        b"00-%b-%b-01" % (TRACE.upper(), SPAN),
        b"00-%b-%b-1" % (TRACE, SPAN),
        b"00-%b-%b-zz" % (TRACE, SPAN),
        b"00-%b-%b-01" % (SHORT, SPAN),
        b"00_%b_%b_01" % (TRACE, SPAN),
    ],
)
def test_malformed_traceparents_are_none(value: bytes) -> None:
    assert parent_of((b"traceparent", value), (b"tracestate", b"a=1")) == NO_PARENT


def test_a_traceparent_twice_is_none() -> None:
    value = b"00-%b-%b-01" % (TRACE, SPAN)
    assert parent_of((b"traceparent", value), (b"traceparent", value)) == NO_PARENT


def test_tracestate_is_joined_and_bounded() -> None:
    first: Header = (b"traceparent", b"00-%b-%b-01" % (TRACE, SPAN))
    assert parent_of(first, (b"tracestate", b"a=1"), (b"tracestate", b"b=2")).state == b"a=1,b=2"
    assert parent_of(first, (b"tracestate", b"x" * (MAX_TRACESTATE_BYTES + 1))).state == b""
    assert parent_of(first, (b"tracestate", b"a=\x01")).state == b""


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"%b-%b" % (TRACE, SPAN), Parent(TRACE, SPAN, None, formats=SINGLE)),
        (b"%b-%b-1" % (TRACE, SPAN), Parent(TRACE, SPAN, is_sampled=True, formats=SINGLE)),
        (b"%b-%b-0-%b" % (TRACE, SPAN, OLD), Parent(TRACE, SPAN, is_sampled=False, formats=SINGLE)),
        (b"%b-%b-d" % (TRACE, SPAN), Parent(TRACE, SPAN, is_sampled=True, formats=SINGLE, is_debug=True)),
        (b"%b-%b-1" % (SHORT, SPAN), Parent(b"0" * 16 + SHORT, SPAN, is_sampled=True, formats=SINGLE)),
        (b"%b-%b-1" % (TRACE.upper(), SPAN.upper()), Parent(TRACE, SPAN, is_sampled=True, formats=SINGLE)),
        (b"0", Parent(is_sampled=False, formats=SINGLE)),
        (b"1", Parent(is_sampled=True, formats=SINGLE)),
        (b"d", Parent(is_sampled=True, formats=SINGLE, is_debug=True)),
        (b"", NO_PARENT),
        (b"2", NO_PARENT),
        (b"%b" % TRACE, NO_PARENT),
        (b"%b-%b-2" % (TRACE, SPAN), NO_PARENT),
        (b"%b-%b-1-12" % (TRACE, SPAN), NO_PARENT),
        (b"%b-%b-1" % (b"0" * 32, SPAN), NO_PARENT),
        (b"%b-%b-1" % (TRACE, b"0" * 16), NO_PARENT),
    ],
)
def test_b3_in_one_header(value: bytes, expected: Parent) -> None:
    assert parent_of((b"b3", value), preferred=MULTI) == expected
    assert parent_of((b"b3", value)) == expected


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        (b3(traceid=TRACE, spanid=SPAN, sampled=b"1"), Parent(TRACE, SPAN, is_sampled=True, formats=MULTI)),
        (b3(traceid=TRACE, spanid=SPAN, sampled=b"0"), Parent(TRACE, SPAN, is_sampled=False, formats=MULTI)),
        (b3(traceid=TRACE, spanid=SPAN), Parent(TRACE, SPAN, None, formats=MULTI)),
        (
            b3(traceid=TRACE, spanid=SPAN, sampled=b"0", flags=b"1"),
            Parent(TRACE, SPAN, is_sampled=True, formats=MULTI, is_debug=True),
        ),
        (b3(sampled=b"true"), Parent(is_sampled=True, formats=MULTI)),
        (b3(sampled=b"0"), Parent(is_sampled=False, formats=MULTI)),
        (b3(traceid=SHORT, spanid=SPAN), Parent(b"0" * 16 + SHORT, SPAN, None, formats=MULTI)),
        (b3(traceid=TRACE, sampled=b"1"), NO_PARENT),
        (b3(spanid=SPAN), NO_PARENT),
        (b3(traceid=b"xyz", spanid=SPAN, sampled=b"1"), NO_PARENT),
        (b3(traceid=TRACE, spanid=b"0" * 16), NO_PARENT),
        (b3(sampled=b"yes"), NO_PARENT),
    ],
)
def test_b3_in_several_headers(headers: list[Header], expected: Parent) -> None:
    assert parent_of(*headers, preferred=MULTI) == expected


def test_the_provider_s_format_comes_first_and_the_other_one_is_the_fallback() -> None:
    both = [(b"traceparent", b"00-%b-%b-01" % (TRACE, SPAN)), *b3(traceid=b"a" * 32, spanid=OLD)]
    assert parent_of(*both).trace_id == TRACE
    assert parent_of(*both, preferred=MULTI).trace_id == b"a" * 32
    broken = [(b"traceparent", b"00"), *b3(traceid=b"a" * 32, spanid=OLD)]
    assert parent_of(*broken).trace_id == b"a" * 32


def bits(number: int) -> int:
    return {64: 0xABC, 128: 0xDEF}[number]


def injected(parent: Parent, formats: Format, *, is_sampled: bool = True) -> dict[bytes, bytes]:
    """Over headers of the client that are stale, where it has a context."""
    context = child(parent, bits, is_sampled=is_sampled)
    stale: list[Header] = [(b"traceparent", b"stale"), (b"x-b3-sampled", b"stale")]
    headers = inject([(b"accept", b"*/*"), *(stale if parent is not NO_PARENT else [])], context, formats)
    assert len(headers) == len(dict(headers))
    return {name: value for name, value in headers if name != b"accept"}


def test_a_new_trace_is_written_in_the_provider_s_format() -> None:
    span, trace = b"%016x" % 0xABC, b"%032x" % 0xDEF
    assert injected(NO_PARENT, W3C) == {b"traceparent": b"00-%b-%b-01" % (trace, span)}
    assert injected(NO_PARENT, W3C, is_sampled=False) == {b"traceparent": b"00-%b-%b-00" % (trace, span)}
    assert injected(NO_PARENT, MULTI) == dict(b3(traceid=trace, spanid=span, sampled=b"1"))
    assert injected(NO_PARENT, SINGLE) == {b"b3": b"%b-%b-1" % (trace, span)}


def test_malformed_headers_are_replaced() -> None:
    broken: list[Header] = [(b"traceparent", b"broken"), (b"b3", b"broken")]
    context = child(extract(broken, W3C), bits, is_sampled=True)
    assert [name for name, _ in inject(broken, context, W3C)] == [b"traceparent"]


def test_a_child_keeps_the_trace_and_names_its_parent() -> None:
    span = b"%016x" % 0xABC
    parent = Parent(TRACE, SPAN, is_sampled=True, state=b"a=1", formats=W3C)
    assert injected(parent, W3C) == {
        b"traceparent": b"00-%b-%b-01" % (TRACE, span),
        b"tracestate": b"a=1",
    }
    assert injected(parent._replace(formats=MULTI, state=b""), MULTI, is_sampled=False) == dict(
        b3(traceid=TRACE, spanid=span, parentspanid=SPAN, sampled=b"0")
    )


def test_a_client_of_the_other_format_gets_both() -> None:
    found = injected(Parent(TRACE, SPAN, is_sampled=True, formats=SINGLE), W3C)
    assert found.keys() == {b"traceparent", b"b3"}
    found = injected(Parent(TRACE, SPAN, is_sampled=True, formats=MULTI, is_debug=True), W3C)
    assert found[b"x-b3-flags"] == b"1"
    assert b"x-b3-sampled" not in found


@given(
    st.lists(st.tuples(st.sampled_from([b"traceparent", b"b3", b"x-b3-traceid"]), st.binary()), max_size=4)
)
def test_whatever_comes_is_read_and_replaced(headers: list[Header]) -> None:
    for preferred in (W3C, MULTI):
        parent = extract(headers, preferred)
        context = child(parent, random.getrandbits, is_sampled=True)
        again = extract(inject(headers, context, preferred), preferred)
        assert (again.trace_id, again.span_id) == (context.trace_id, context.span_id)


SAMPLED_ID = ID[:14] + b"9" + ID[15:]


@pytest.mark.parametrize(
    ("percent", "parent", "request_id", "chance", "expected"),
    [
        # The client has decided.
        (0.0, Parent(is_sampled=True), ID, 0.9, (True, ID)),
        (100.0, Parent(is_sampled=False), ID, 0.0, (False, ID)),
        (100.0, Parent(is_sampled=False), SAMPLED_ID, 0.0, (False, SAMPLED_ID)),
        # The id has.
        (0.0, NO_PARENT, SAMPLED_ID, 0.9, (True, SAMPLED_ID)),
        (0.0, NO_PARENT, ID[:14] + b"a" + ID[15:], 0.9, (True, ID[:14] + b"a" + ID[15:])),
        (0.0, NO_PARENT, ID[:14] + b"b" + ID[15:], 0.9, (True, ID[:14] + b"b" + ID[15:])),
        # Nobody has.
        (1.0, NO_PARENT, ID, 0.0099, (True, SAMPLED_ID)),
        (1.0, NO_PARENT, ID, 0.01, (False, ID)),
        (100.0, NO_PARENT, ID, 0.9999, (True, SAMPLED_ID)),
        (0.0, NO_PARENT, ID, 0.0, (False, ID)),
        # What is no UUID says nothing and stays.
        (0.0, NO_PARENT, b"my-own-id-1234967", 0.0, (False, b"my-own-id-1234967")),
        (100.0, NO_PARENT, b"my-own-id", 0.0, (True, b"my-own-id")),
        (100.0, NO_PARENT, ID[:14] + b"1" + ID[15:], 0.0, (True, ID[:14] + b"1" + ID[15:])),
    ],
)
def test_who_decides(
    percent: float, parent: Parent, request_id: bytes, chance: float, expected: tuple[bool, bytes]
) -> None:
    assert decide(Sampling(percent), parent, request_id, chance) == expected


def test_ids_can_be_left_out_of_it() -> None:
    sampling = Sampling(100.0, uses_request_id=False)
    assert decide(sampling, NO_PARENT, ID, 0.5) == (True, ID)
    assert decide(sampling._replace(percent=0.0), NO_PARENT, SAMPLED_ID, 0.5) == (False, SAMPLED_ID)
