"""HPACK against RFC 7541: its examples, its errors, its tables."""

from __future__ import annotations

import hpack
import pytest

from transport.http2.hpack import huffman
from transport.http2.hpack.decoder import Decoder, decode_integer
from transport.http2.hpack.encoder import Encoder, encode_integer
from transport.http2.hpack.table import STATIC, STATIC_COUNT, HpackError

Headers = list[tuple[bytes, bytes]]


def decoder(max_bytes: int = 65_536, max_count: int = 100) -> Decoder:
    return Decoder(max_bytes, max_count)


def test_static_table_is_that_of_the_rfc() -> None:
    from hpack.table import HeaderTable  # noqa: PLC0415 - the oracle's internals, for this test only

    assert STATIC_COUNT == 61
    assert STATIC[1:] == tuple((bytes(n), bytes(v)) for n, v in HeaderTable.STATIC_TABLE)


# Appendix C.1: integers
@pytest.mark.parametrize(
    ("value", "prefix", "octets"), [(10, 5, "0a"), (1337, 5, "1f9a0a"), (42, 8, "2a"), (31, 5, "1f00")]
)
def test_integer_examples(value: int, prefix: int, octets: str) -> None:
    encoded = bytes.fromhex(octets)
    assert encode_integer(value, prefix, 0) == encoded
    if len(encoded) > 1:
        assert decode_integer(encoded, 1, (1 << prefix) - 1) == (value, len(encoded))


REQUESTS: list[Headers] = [
    [(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/"), (b":authority", b"www.example.com")],
    [
        (b":method", b"GET"),
        (b":scheme", b"http"),
        (b":path", b"/"),
        (b":authority", b"www.example.com"),
        (b"cache-control", b"no-cache"),
    ],
    [
        (b":method", b"GET"),
        (b":scheme", b"https"),
        (b":path", b"/index.html"),
        (b":authority", b"www.example.com"),
        (b"custom-key", b"custom-value"),
    ],
]
# Appendices C.3 (plain) and C.4 (Huffman)
REQUEST_BLOCKS = [
    (
        "828684410f7777772e6578616d706c652e636f6d",
        "828684be58086e6f2d6361636865",
        "828785bf400a637573746f6d2d6b65790c637573746f6d2d76616c7565",
    ),
    (
        "828684418cf1e3c2e5f23a6ba0ab90f4ff",
        "828684be5886a8eb10649cbf",
        "828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf",
    ),
]


@pytest.mark.parametrize("blocks", REQUEST_BLOCKS)
def test_request_examples_decode(blocks: tuple[str, ...]) -> None:
    under_test = decoder()
    for block, headers in zip(blocks, REQUESTS, strict=True):
        assert under_test.decode(bytes.fromhex(block)).headers == headers


def test_request_examples_encode_as_in_appendix_c4() -> None:
    under_test = Encoder()
    assert [under_test.encode(headers).hex() for headers in REQUESTS] == list(REQUEST_BLOCKS[1])


DATES = [b"Mon, 21 Oct 2013 20:13:21 GMT", b"Mon, 21 Oct 2013 20:13:21 GMT", b"Mon, 21 Oct 2013 20:13:22 GMT"]
LOCATION = (b"location", b"https://www.example.com")
RESPONSES: list[Headers] = [
    [(b":status", b"302"), (b"cache-control", b"private"), (b"date", DATES[0]), LOCATION],
    [(b":status", b"307"), (b"cache-control", b"private"), (b"date", DATES[1]), LOCATION],
    [
        (b":status", b"200"),
        (b"cache-control", b"private"),
        (b"date", DATES[2]),
        LOCATION,
        (b"content-encoding", b"gzip"),
        (b"set-cookie", b"foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1"),
    ],
]
# Appendices C.5 and C.6: a table of 256 octets, so that entries are evicted
RESPONSE_BLOCKS = [
    (
        (
            "4803333032580770726976617465611d4d6f6e2c203231204f637420323031332032303a31333a323120474d546e17"
            "68747470733a2f2f7777772e6578616d706c652e636f6d"
        ),
        "4803333037c1c0bf",
        (
            "88c1611d4d6f6e2c203231204f637420323031332032303a31333a323220474d54c05a04677a69707738666f6f3d41"
            "53444a4b48514b425a584f5157454f50495541585157454f49553b206d61782d6167653d333630303b207665727369"
            "6f6e3d31"
        ),
    ),
    (
        (
            "488264025885aec3771a4b6196d07abe941054d444a8200595040b8166e082a62d1bff6e919d29ad171863c78f0b97"
            "c8e9ae82ae43d3"
        ),
        "4883640effc1c0bf",
        (
            "88c16196d07abe941054d444a8200595040b8166e084a62d1bffc05a839bd9ab77ad94e7821dd7f2e6c7b335dfdfcd"
            "5b3960d5af27087f3672c1ab270fb5291f9587316065c003ed4ee5b1063d5007"
        ),
    ),
]


@pytest.mark.parametrize("blocks", RESPONSE_BLOCKS)
def test_response_examples_decode_with_eviction(blocks: tuple[str, ...]) -> None:
    under_test = decoder()
    under_test.decode(b"\x3f\xe1\x01")  # the table's size: 256
    for block, headers in zip(blocks, RESPONSES, strict=True):
        assert under_test.decode(bytes.fromhex(block)).headers == headers


# Appendix C.2: each kind of literal
@pytest.mark.parametrize(
    ("block", "header"),
    [
        ("400a637573746f6d2d6b65790d637573746f6d2d686561646572", (b"custom-key", b"custom-header")),
        ("040c2f73616d706c652f70617468", (b":path", b"/sample/path")),
        ("100870617373776f726406736563726574", (b"password", b"secret")),
        ("82", (b":method", b"GET")),
    ],
)
def test_literal_examples(block: str, header: tuple[bytes, bytes]) -> None:
    assert decoder().decode(bytes.fromhex(block)).headers == [header]


@pytest.mark.parametrize(
    ("why", "block"),
    [
        ("index 0", "80"),
        ("index beyond the static table, dynamic table empty", "be"),
        ("index far beyond the tables", "ff9f01"),
        ("name index beyond the tables", "7f9f0101"),
        ("integer without end", "ffffffffffffff"),
        ("integer too large", "ff80808080808001"),
        ("integer cut off", "ff"),
        ("integer cut off", "ff80"),
        ("literal without name", "40"),
        ("literal without value", "4001"),
        ("literal without value", "400161"),
        ("name longer than the block", "400a6162"),
        ("value longer than the block", "4001610562"),
        ("value length cut off", "4001617f"),
        ("huffman padding with zeros", "0001618100"),
        ("huffman padding of 8 bits", "00016182 1fff"),
        ("huffman end-of-string symbol", "00016184 ffffffff"),
        ("huffman end-of-string within", "00016185 ffffffff1f"),
        ("size update behind a field", "8220"),
        ("size update beyond our table", "3fe21f"),
        ("size update cut off", "3f"),
    ],
)
def test_undecodable_block(why: str, block: str) -> None:
    with pytest.raises(HpackError):
        decoder().decode(bytes.fromhex(block))
    with pytest.raises(hpack.HPACKError):  # the oracle agrees
        hpack.Decoder().decode(bytes.fromhex(block), raw=True)


def test_every_octet_survives_huffman_coding() -> None:
    everything = bytes(range(256)) * 2
    assert huffman.decode(huffman.encode(everything)) == everything
    assert len(huffman.encode(everything)) == huffman.encoded_bytes(everything)


def test_entry_larger_than_the_table_empties_it() -> None:
    under_test, encoder = decoder(), hpack.Encoder()
    under_test.decode(encoder.encode([(b"a", b"b")]))
    block = b"\x40\x01x" + encode_integer(4096, 7, 0) + b"v" * 4096
    assert under_test.decode(block).headers == [(b"x", b"v" * 4096)]
    with pytest.raises(HpackError):
        under_test.decode(b"\xbe")


def test_name_of_an_evicted_entry_can_be_used_while_it_is_evicted() -> None:
    under_test = decoder()
    under_test.decode(b"\x3f\x21")  # 64 octets: room for one entry
    under_test.decode(b"\x40\x04name\x05first")
    assert under_test.decode(b"\x7e\x06second").headers == [(b"name", b"second")]
    assert under_test.decode(b"\xbe").headers == [(b"name", b"second")]


def test_block_of_indices_is_decoded_once() -> None:
    under_test = decoder()
    block = b"\x82\x86\x84"
    assert under_test.decode(block) is under_test.decode(block)


def test_cached_block_follows_the_table() -> None:
    under_test = decoder()
    under_test.decode(b"\x40\x01a\x011")
    assert under_test.decode(b"\xbe").headers == [(b"a", b"1")]
    assert under_test.decode(b"\xbe").headers == [(b"a", b"1")]
    under_test.decode(b"\x40\x01a\x012")
    assert under_test.decode(b"\xbe").headers == [(b"a", b"2")]
    under_test.decode(b"\x20")
    with pytest.raises(HpackError):
        under_test.decode(b"\xbe")


def test_list_over_the_limits_is_cut_but_the_table_stays_in_step() -> None:
    under_test, encoder = decoder(max_bytes=200), hpack.Encoder()
    block = under_test.decode(encoder.encode([(b"a", b"x" * 100), (b"b", b"y" * 100), (b"c", b"z")]))
    assert block.excess == "header_list_too_large"
    block = under_test.decode(encoder.encode([(b"b", b"y" * 100), (b"c", b"z")]))
    assert (block.headers, block.excess) == ([(b"b", b"y" * 100), (b"c", b"z")], "")
    assert decoder(max_count=2).decode(b"\x82\x86\x84").excess == "too_many_headers"


def test_indexed_bomb_is_not_built() -> None:
    under_test = decoder(max_bytes=65_536)
    under_test.decode(b"\x40\x01c" + encode_integer(4000, 7, 0) + b"v" * 4000)
    block = under_test.decode(b"\xbe" * 60_000)  # would be 240 MB
    assert block.excess == "header_list_too_large"
    assert len(block.headers) < 20


# The encoder's choices


def sizes(encoder: Encoder, *lists: Headers) -> list[int]:
    return [len(encoder.encode(headers)) for headers in lists]


def test_what_repeats_costs_an_octet() -> None:
    response = [(b":status", b"200"), (b"baggage", b"k8s.cluster.name=Kubernetes,k8s.namespace.name=shop")]
    first, second = sizes(Encoder(), response, response)
    assert second == 2 < first


def test_unique_values_do_not_push_out_what_repeats() -> None:
    encoder, oracle = Encoder(), hpack.Decoder()
    for number in range(500):
        headers = [
            (b":method", b"CONNECT"),
            (b":authority", b"10.0.0.%d:80" % (number % 20)),
            (b"baggage", b"k8s.cluster.name=Kubernetes,k8s.namespace.name=shop,k8s.pod.name=web"),
            (b"forwarded", b'for="10.1.2.3:%d"' % number),
            (b"traceparent", b"00-%032x-%016x-00" % (number, number)),
        ]
        block = encoder.encode(headers)
        assert [(bytes(n), bytes(v)) for n, v in oracle.decode(block, raw=True)] == headers
    assert len(block) < 95  # 55 of them are the traceparent, 17 to 21 the forwarded header


def test_volatile_value_is_indexed_when_it_comes_again() -> None:
    headers = [(b":path", b"/a/rather/long/path/that/comes/again")]
    first, second, third = sizes(Encoder(), headers, headers, headers)
    assert first > 30
    assert second > 10
    assert third == 1


def test_secrets_are_never_indexed() -> None:
    for name in (b"authorization", b"cookie", b"set-cookie", b"proxy-authorization"):
        block = Encoder().encode([(name, b"secret")])
        assert block[0] & 0xF0 == 0x10
        (decoded,) = hpack.Decoder().decode(block, raw=True)
        assert isinstance(decoded, hpack.NeverIndexedHeaderTuple)


@pytest.mark.parametrize("limits", [[0], [0, 4096], [100, 0, 300], [4096], [9999], [64, 4096, 128]])
def test_table_limits_of_the_peer_are_kept_and_announced(limits: list[int]) -> None:
    encoder, oracle = Encoder(), hpack.Decoder()
    headers = [(b"a%d" % number, b"v" * number) for number in range(40)]
    oracle.decode(encoder.encode(headers), raw=True)
    for limit in limits:
        encoder.limit_table(limit)
    oracle.max_allowed_table_size = min(limits[-1], 4096)
    for _ in range(3):
        assert [(bytes(n), bytes(v)) for n, v in oracle.decode(encoder.encode(headers), raw=True)] == headers


def test_smallest_limit_in_between_is_announced_first() -> None:
    encoder = Encoder()
    encoder.limit_table(0)
    encoder.limit_table(4096)
    assert encoder.encode([(b":method", b"GET")]) == b"\x20\x3f\xe1\x1f\x82"
    assert encoder.encode([(b":method", b"GET")]) == b"\x82"
