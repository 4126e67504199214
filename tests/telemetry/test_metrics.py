"""Families, bounds and content negotiation (facts 11.1)."""

from __future__ import annotations

import gzip
import zlib

import pytest

from telemetry.metrics import OVERFLOW, Description, Family, Kind, MetricSet, negotiate

HITS = Description("hits", Kind.COUNTER, "How often", ("who", "place"), optional=frozenset({"place"}))
SIZE = Description("size_bytes", Kind.GAUGE, 'Line "one"\nand \\two', unit="bytes")


def test_text() -> None:
    metrics = MetricSet()
    hits = metrics.add(HITS)
    hits.inc(("a", ""))
    hits.inc(("a", ""), 4)
    hits.inc(('b"\\\n', "x"))
    metrics.add_source(SIZE, lambda: {(): 1.5})
    assert metrics.render().decode() == (
        "# HELP hits How often\n"
        "# TYPE hits counter\n"
        'hits_total{who="a"} 5\n'
        'hits_total{who="b\\"\\\\\\n",place="x"} 1\n'
        '# HELP size_bytes Line \\"one\\"\\nand \\\\two\n'
        "# TYPE size_bytes gauge\n"
        "# UNIT size_bytes bytes\n"
        "size_bytes 1.5\n"
        "# EOF\n"
    )


def test_series_beyond_the_bound_are_counted_together() -> None:
    family = Family(HITS, max_series=2)
    for name in "abcd":
        family.inc((name, ""))
    family.inc(("a", ""))
    assert dict(family.samples()) == {("a", ""): 2, ("b", ""): 1, (OVERFLOW, OVERFLOW): 2}


def test_gauge_is_set() -> None:
    family = Family(SIZE)
    family.set((), 3)
    family.set((), 2)
    assert family.get() == 2


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("", "text/plain; charset=utf-8"),
        ("text/plain;version=0.0.4", "text/plain; charset=utf-8"),
        (
            "application/openmetrics-text;version=1.0.0,text/plain;q=0.5",
            "application/openmetrics-text;charset=utf-8;version=1.0.0",
        ),
    ],
)
def test_content_type(accept: str, content_type: str) -> None:
    assert negotiate(b"x", accept, "").content_type == content_type


@pytest.mark.parametrize(
    ("accept_encoding", "encoding"),
    [
        ("", ""),
        ("br", ""),
        ("gzip", "gzip"),
        ("br, GZIP;q=0.5", "gzip"),
        ("deflate", "deflate"),
        ("gzip;q=0", ""),
    ],
)
def test_compression(accept_encoding: str, encoding: str) -> None:
    page = negotiate(b"x" * 100, "", accept_encoding)
    assert page.encoding == encoding
    body = page.body
    if encoding:
        body = gzip.decompress(body) if encoding == "gzip" else zlib.decompress(body)
    assert body == b"x" * 100
