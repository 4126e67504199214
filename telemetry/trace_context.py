"""Which trace a request belongs to: W3C traceparent and tracestate, and B3 in one header or several. Pure.

Extraction prefers the provider's own format and takes the other one where that is all there is. What is
malformed counts as absent, as in the specifications: a broken header begins a new trace, it never breaks a
request. Injection writes the provider's format, and the client's too where it was another.
Sources: W3C Trace Context level 1, openzipkin/b3-propagation, waypoint-facts 14.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable
from typing import Final, NamedTuple, TypeAlias

Header: TypeAlias = tuple[bytes, bytes]
RandomBits: TypeAlias = Callable[[int], int]

MAX_TRACESTATE_BYTES: Final = 512  # what everybody must be able to pass on; longer ones are dropped

_TRACEPARENT: Final = re.compile(
    rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?"
).fullmatch
_B3: Final = re.compile(
    rb"([0-9a-fA-F]{32}|[0-9a-fA-F]{16})-([0-9a-fA-F]{16})(?:-([01d])(?:-[0-9a-fA-F]{16})?)?"
).fullmatch
_TRACE_ID: Final = re.compile(rb"[0-9a-fA-F]{32}|[0-9a-fA-F]{16}").fullmatch
_SPAN_ID: Final = re.compile(rb"[0-9a-fA-F]{16}").fullmatch
_STATE: Final = re.compile(rb"[\x20-\x7e\t]*").fullmatch
_SAMPLED: Final = {b"1": True, b"true": True, b"d": True, b"0": False, b"false": False}

W3C_NAMES: Final = frozenset({b"traceparent", b"tracestate"})
B3_NAMES: Final = frozenset(
    {b"b3", b"x-b3-traceid", b"x-b3-spanid", b"x-b3-parentspanid", b"x-b3-sampled", b"x-b3-flags"}
)
_NAMES: Final = W3C_NAMES | B3_NAMES


class Format(enum.Flag):
    W3C = enum.auto()
    B3_MULTI = enum.auto()
    B3_SINGLE = enum.auto()


_B3_ANY: Final = Format.B3_MULTI | Format.B3_SINGLE


class Parent(NamedTuple):
    """What the client said. Empty ids: it only said whether to sample. `is_sampled` None: it left that open.

    `is_debug`: B3's demand to sample whatever else is said.
    """

    trace_id: bytes = b""  # 32 hex digits
    span_id: bytes = b""
    is_sampled: bool | None = None
    state: bytes = b""
    formats: Format = Format(0)
    is_debug: bool = False


NO_PARENT: Final = Parent()


class Context(NamedTuple):
    """The waypoint's own span."""

    trace_id: bytes
    span_id: bytes
    parent_id: bytes  # empty: it is the root
    is_sampled: bool
    parent: Parent


def extract(headers: list[Header], preferred: Format) -> Parent:
    """The client's context; equal to NO_PARENT where none is well-formed, NO_PARENT itself where there is
    none at all.
    """
    found: dict[bytes, bytes] | None = None
    for name, value in headers:
        if name in _NAMES:
            if found is None:
                found = {}
            if name == b"tracestate" and name in found:
                found[name] += b"," + value
            elif name == b"traceparent" and name in found:
                found[name] = b""  # twice: malformed
            else:
                found.setdefault(name, value)
    if found is None:
        return NO_PARENT
    readers = (_read_w3c, _read_b3) if preferred & Format.W3C else (_read_b3, _read_w3c)
    for read in readers:
        parent = read(found)
        if parent is not None:
            return parent
    return Parent()  # equal to NO_PARENT, and there is something to be replaced


def _read_w3c(found: dict[bytes, bytes]) -> Parent | None:
    match = _TRACEPARENT(found.get(b"traceparent", b"").strip(b" \t"))
    if match is None:
        return None
    version, trace_id, span_id, flags, rest = match.groups()
    if version == b"ff" or (version == b"00" and rest is not None):
        return None
    if not int(trace_id, 16) or not int(span_id, 16):
        return None
    state = found.get(b"tracestate", b"")
    if len(state) > MAX_TRACESTATE_BYTES or _STATE(state) is None:
        state = b""
    return Parent(trace_id, span_id, bool(int(flags, 16) & 1), state, Format.W3C)


def _read_b3(found: dict[bytes, bytes]) -> Parent | None:
    single = found.get(b"b3")
    if single is not None:
        return _read_b3_single(single)
    is_debug = found.get(b"x-b3-flags") == b"1"
    sampled = True if is_debug else _SAMPLED.get(found.get(b"x-b3-sampled", b"").lower())
    trace_id, span_id = found.get(b"x-b3-traceid", b""), found.get(b"x-b3-spanid", b"")
    if _TRACE_ID(trace_id) and _SPAN_ID(span_id) and int(trace_id, 16) and int(span_id, 16):
        wide = trace_id.lower().rjust(32, b"0")
        return Parent(wide, span_id.lower(), sampled, formats=Format.B3_MULTI, is_debug=is_debug)
    if sampled is None or trace_id or span_id:
        return None
    return Parent(is_sampled=sampled, formats=Format.B3_MULTI, is_debug=is_debug)


def _read_b3_single(value: bytes) -> Parent | None:
    if value in (b"0", b"1", b"d"):
        return Parent(is_sampled=value != b"0", formats=Format.B3_SINGLE, is_debug=value == b"d")
    match = _B3(value)
    if match is None or not int(match[1], 16) or not int(match[2], 16):
        return None
    sampled = None if match[3] is None else _SAMPLED[match[3]]
    trace_id = match[1].lower().rjust(32, b"0")
    return Parent(trace_id, match[2].lower(), sampled, formats=Format.B3_SINGLE, is_debug=match[3] == b"d")


def child(parent: Parent, random_bits: RandomBits, *, is_sampled: bool) -> Context:
    """A span of the waypoint's within the client's trace, or of a new one."""
    span_id = b"%016x" % (random_bits(64) or 1)
    trace_id = parent.trace_id or b"%032x" % (random_bits(128) or 1)
    return Context(trace_id, span_id, parent.span_id, is_sampled, parent)


def inject(headers: list[Header], context: Context, formats: Format) -> list[Header]:
    """The headers with the span in place of the client's context."""
    if context.parent is NO_PARENT:
        kept = list(headers)
    else:
        kept = [field for field in headers if field[0] not in _NAMES]
    formats |= context.parent.formats
    if formats & Format.W3C:
        flags = b"01" if context.is_sampled else b"00"
        kept.append((b"traceparent", b"00-%b-%b-%b" % (context.trace_id, context.span_id, flags)))
        if context.parent.state:
            kept.append((b"tracestate", context.parent.state))
    if formats & Format.B3_SINGLE:
        kept.append((b"b3", _b3_single(context)))
    elif formats & Format.B3_MULTI:
        kept.append((b"x-b3-traceid", context.trace_id))
        kept.append((b"x-b3-spanid", context.span_id))
        if context.parent_id:
            kept.append((b"x-b3-parentspanid", context.parent_id))
        if context.parent.is_debug:
            kept.append((b"x-b3-flags", b"1"))
        else:
            kept.append((b"x-b3-sampled", b"1" if context.is_sampled else b"0"))
    return kept


def _b3_single(context: Context) -> bytes:
    sampled = b"d" if context.parent.is_debug else b"1" if context.is_sampled else b"0"
    text = b"%b-%b-%b" % (context.trace_id, context.span_id, sampled)
    return text + b"-" + context.parent_id if context.parent_id else text
