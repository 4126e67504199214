"""What is fuzzed, and what must hold for any input. A target raises when it does not.

The first octets of an input choose the role and where the rest is cut, so that the fuzzer finds faults of
reassembly as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from itertools import pairwise
from typing import Final

import hpack

from tests.transport.http1.test_properties import all_events
from tests.transport.http2.wire import GET, OK, POST, PREFACE, Rig, data, merged, ping
from tests.transport.http2.wire import settings as settings_frame
from tests.waypoint.state.token_builders import NOW, authentication, key_set, rule, token
from transport.http1.settings import Role as Http1Role
from transport.http2.events import ConnectionFailed, Event
from transport.http2.hpack.decoder import Decoder
from transport.http2.hpack.table import HpackError
from transport.http2.settings import Http2Settings, Role
from transport.http_path import NormalisedPath, PathNormalization, normalise
from waypoint.state.authentication import Authenticator, Invalid, parse_authentication
from waypoint.worker.client_hello import MAX_CLIENT_HELLO, Peeked, server_name

Target = Callable[[bytes], None]

# TLS 1.2 with one cipher suite and the name a.b.
CLIENT_HELLO: Final = (
    b"\x16\x03\x01\x00\x3b\x01\x00\x00\x37\x03\x03" + bytes(32) + b"\x00\x00\x02\x13\x01\x01\x00"
    b"\x00\x0c\x00\x00\x00\x08\x00\x06\x00\x00\x03a.b"
)
_SMALL: Final = Http2Settings(initial_window=66_000, connection_window=100_000, max_concurrent_streams=3)


def http1(octets: bytes) -> None:
    """Both codecs tell the same story, however the octets are cut."""
    if len(octets) < 4:
        return
    role = Http1Role.SERVER if octets[0] & 1 else Http1Role.CLIENT
    body = octets[4:]
    edges = sorted({place % (len(body) + 1) for place in octets[1:4]} | {0, len(body)})
    pieces = [body[start:end] for start, end in pairwise(edges)]
    reference = all_events(role, "reference", pieces)
    assert "refused_by_h11" not in str(reference), "h11 found a fault before our own checks did"
    assert all_events(role, "lean", pieces) == reference
    assert all_events(role, "lean", [body]) == reference


def http2(octets: bytes) -> None:
    """No input raises, a failed connection says nothing more, and cutting changes nothing."""
    if len(octets) < 2:
        return
    role = Role.SERVER if octets[0] & 1 else Role.CLIENT
    size = octets[1] or 1
    body = octets[2:]
    for kind in ("lean", "reference"):
        whole = _http2_story(role, kind, [body])
        cut = _http2_story(role, kind, [body[start : start + size] for start in range(0, len(body), size)])
        assert whole == cut, f"cutting changes what the {kind} codec tells"


def _http2_story(role: Role, kind: str, pieces: list[bytes]) -> list[Event]:
    rig = Rig(role, kind, _SMALL)  # type: ignore[arg-type]  # one of the two kinds
    if role is Role.CLIENT:
        rig.codec.open_stream(POST)
    told = list(rig.gets(PREFACE + settings_frame() if role is Role.SERVER else settings_frame()))
    for piece in pieces:
        has_failed = any(isinstance(event, ConnectionFailed) for event in told)
        events = rig.gets(piece)
        assert not (has_failed and events), "events after the connection failed"
        told = merged([*told, *events])
    assert len(rig.codec.take_output()) < 64 * 1024, "a short input made a long output"
    return told


def hpack_block(octets: bytes) -> None:
    """Our decoder and the hpack library agree about any sequence of blocks."""
    own, oracle = Decoder(1 << 20, 10_000), hpack.Decoder(max_header_list_size=1 << 20)
    while octets:
        block, octets = octets[1 : 1 + octets[0]], octets[1 + octets[0] :]
        try:
            expected = [(bytes(name), bytes(value)) for name, value in oracle.decode(block, raw=True)]
        except hpack.HPACKError:
            try:
                own.decode(block)
            except HpackError:
                return
            raise AssertionError("the library refuses what we accept") from None
        assert own.decode(block).headers == expected


def path(octets: bytes) -> None:
    """One pass is enough, and what is forbidden after it is not there."""
    for level in PathNormalization:
        once = normalise(octets, level)
        if not isinstance(once, NormalisedPath):
            continue
        assert once.path.startswith(b"/") or once.path == b"*"
        again = normalise(once.path, level)
        assert isinstance(again, NormalisedPath)
        assert again.path == once.path, "a second pass changes the path"
        if level is PathNormalization.NONE:
            continue
        segments = once.path.split(b"/")
        assert b".." not in segments
        assert b"." not in segments
        if level is not PathNormalization.BASE:
            assert b"//" not in once.path


def client_hello(octets: bytes) -> None:
    """No input raises, and what was said of a beginning is said of the whole."""
    whole = server_name(octets)
    assert whole is not Peeked.MORE or len(octets) < MAX_CLIENT_HELLO
    for size in range(0, len(octets), max(len(octets) // 16, 1)):
        beginning = server_name(octets[:size])
        assert beginning in (Peeked.MORE, whole), "more octets change what was said"


@cache
def _authenticator() -> tuple[Authenticator, frozenset[bytes]]:
    """One that knows two issuers' keys, and all tokens that these ever signed."""
    keys = key_set("EdDSA", "ES256")
    policy = authentication(rule(key_set=keys), rule(issuer="https://other.example", key_set=keys))
    content = policy.SerializeToString()
    signed = (
        token(exp=NOW + 60, algorithm="EdDSA"),
        token(scope="read write", aud=["a", "b"], algorithm="ES256"),
        token({"iss": "https://other.example", "nested": {"deep": [1, None]}}, algorithm="EdDSA"),
    )
    parsed = parse_authentication(f"{policy.namespace}/{policy.name}", content)
    return Authenticator([parsed]), frozenset(text.encode() for text in signed)


def token_text(octets: bytes) -> None:
    """No input raises, and no text is accepted but those that an issuer signed, octet for octet."""
    authenticator, signed = _authenticator()
    found = authenticator.find([(b"authorization", b"Bearer " + octets)], b"access_token=" + octets)
    judged = [authenticator.judge([each], NOW) for each in found]
    for each, result in zip(found, judged, strict=True):
        if isinstance(result, Invalid):
            assert result.status in {401, 403}
        else:
            assert each.text in signed, "accepted, but nobody signed it"
    if octets in signed:
        assert judged, "a good token is found"
        assert not isinstance(judged[0], Invalid), judged[0]


TARGETS: Final[Mapping[str, Target]] = {
    "http1": http1,
    "http2": http2,
    "hpack": hpack_block,
    "path": path,
    "client_hello": client_hello,
    "token": token_text,
}


def seeds(name: str) -> list[bytes]:
    """Small good inputs from which the fuzzer sets out."""
    match name:
        case "http1":
            requests = (
                b"POST /x HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
            )
            answers = b"HTTP/1.1 101 X\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nabc"
            return [b"\x01\x10\x20\x30" + requests, b"\x00\x05\x09\x0f" + answers]
        case "http2":
            rig = Rig(Role.SERVER, "lean")
            script = rig.headers(1, POST) + data(1, b"abc", end=True) + ping() + rig.headers(3, GET, end=True)
            return [b"\x01\x0b" + script, b"\x00\x07" + Rig(Role.CLIENT, "lean").headers(1, OK, end=True)]
        case "hpack":
            blocks = (hpack.Encoder().encode(POST), hpack.Encoder().encode([(b"x", b"1")], huffman=False))
            return [b"".join(bytes([len(block)]) + block for block in blocks)]
        case "client_hello":
            return [CLIENT_HELLO]
        case "token":
            forged = token(algorithm="EdDSA", header={"alg": "none"}).rpartition(".")[0] + "."
            return [*sorted(_authenticator()[1]), forged.encode(), b"e30.e30.AAAA"]
        case _:
            return [b"/a/../b//c", b"/%2e%2e/%5c..%2f;x?q=/../#f", b"http://h/x"]
