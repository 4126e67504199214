"""Metric families over plain numbers, and their OpenMetrics text (facts 11.1).

Counting is `family.inc(labels)`: one dict operation, no lock; a family belongs to one thread. The text
is written here rather than by prometheus-client's `generate_latest` because a node proxy has thousands
of series with 27 labels each: the library sorts and checks every label of every sample at each scrape
(50 us a sample), while here the label text is made once and the labels keep Istio's order.
prometheus-client's parser is the oracle of the tests. Every family is bounded: above `max_series`
further label sets are counted together under `overflow`.
"""

from __future__ import annotations

import enum
import gzip
import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

MAX_SERIES = 20_000
OVERFLOW = "overflow"
PLAIN_CONTENT_TYPE = "text/plain; charset=utf-8"
OPENMETRICS_CONTENT_TYPE = "application/openmetrics-text;charset=utf-8;version=1.0.0"

Labels = tuple[str, ...]
Number = int | float


class Kind(enum.Enum):
    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Histogram:
    """Counts by bucket, each alone; `bounds` are upper bounds, beyond the last there is one more bucket."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, counts: Iterable[int], total: float) -> None:
        self.counts = [mine + more for mine, more in zip(self.counts, counts, strict=True)]
        self.sum += total

    def lines(self, name: str, labels: str) -> Iterator[str]:
        """OpenMetrics samples; `labels` is the label text of the series."""
        before = labels[:-1] + "," if labels else "{"
        total = 0
        for bound, count in zip((*self.bounds, math.inf), self.counts, strict=True):
            total += count
            edge = "+Inf" if bound == math.inf else repr(float(bound))
            yield f'{name}_bucket{before}le="{edge}"}} {total}'
        yield f"{name}_sum{labels} {self.sum:.10g}"
        yield f"{name}_count{labels} {total}"


@dataclass(frozen=True, slots=True)
class Description:
    """One family as documented. `name` has no `_total`; `optional` labels are left out where empty."""

    name: str
    kind: Kind
    help: str
    labels: Labels = ()
    unit: str = ""
    optional: frozenset[str] = frozenset()

    def label_text(self, values: Sequence[str]) -> str:
        """`{a="b",...}`, empty where there are no labels."""
        pairs = [
            f'{name}="{_escape(value)}"'
            for name, value in zip(self.labels, values, strict=True)
            if value or name not in self.optional
        ]
        return "{" + ",".join(pairs) + "}" if pairs else ""

    @property
    def sample_name(self) -> str:
        return self.name + "_total" if self.kind is Kind.COUNTER else self.name


class Family:
    """The numbers of one description, by label values."""

    def __init__(self, description: Description, *, max_series: int = MAX_SERIES) -> None:
        self.description = description
        self._max_series = max_series
        self._values: dict[Labels, Number] = {}

    def inc(self, labels: Labels = (), by: Number = 1) -> None:
        self._values[self._place(labels)] = self.get(labels) + by

    def set(self, labels: Labels, value: Number) -> None:
        self._values[self._place(labels)] = value

    def get(self, labels: Labels = ()) -> Number:
        return self._values.get(self._place(labels), 0)

    def samples(self) -> Mapping[Labels, Number]:
        return self._values

    def _place(self, labels: Labels) -> Labels:
        if labels in self._values or len(self._values) < self._max_series:
            return labels
        return (OVERFLOW,) * len(self.description.labels)


# Gives the samples of a family at the time of a scrape.
Source = Callable[[], Mapping[Labels, Number]]


class MetricSet:
    """The families of one program, in the order in which they were added."""

    def __init__(self) -> None:
        self._sources: list[tuple[Description, Source]] = []

    def add(self, description: Description) -> Family:
        family = Family(description)
        self._sources.append((description, family.samples))
        return family

    def add_source(self, description: Description, source: Source) -> None:
        """A family whose numbers are asked for at each scrape."""
        self._sources.append((description, source))

    def render(self) -> bytes:
        """OpenMetrics text of everything."""
        return render((description, source()) for description, source in self._sources)


def render(families: Iterable[tuple[Description, Mapping[Labels, Number | Histogram]]]) -> bytes:
    """OpenMetrics text of some families. Label text is made once for all families with the same label
    names.
    """
    lines: list[str] = []
    texts: dict[tuple[Labels, Labels], str] = {}
    for description, samples in families:
        lines.append(f"# HELP {description.name} {_escape(description.help)}")
        lines.append(f"# TYPE {description.name} {description.kind.value}")
        if description.unit:
            lines.append(f"# UNIT {description.name} {description.unit}")
        name = description.sample_name
        for labels, value in samples.items():
            text = texts.get((description.labels, labels))
            if text is None:
                text = texts[description.labels, labels] = description.label_text(labels)
            if isinstance(value, Histogram):
                lines.extend(value.lines(name, text))
            else:
                lines.append(f"{name}{text} {value}")
    lines.append("# EOF\n")
    return "\n".join(lines).encode("utf-8", "backslashreplace")


@dataclass(frozen=True, slots=True)
class Page:
    """One answer to a scrape; `encoding` is empty where the body is not compressed."""

    body: bytes
    content_type: str
    encoding: str = ""


def negotiate(body: bytes, accept: str, accept_encoding: str) -> Page:
    """The body as the scraper wants it: always OpenMetrics text, named so only where asked (facts 11.1)."""
    is_asked = "application/openmetrics-text" in accept
    content_type = OPENMETRICS_CONTENT_TYPE if is_asked else PLAIN_CONTENT_TYPE
    encodings = {
        item.split(";")[0].strip()
        for item in accept_encoding.lower().split(",")
        if item.partition(";")[2].replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    }
    if "gzip" in encodings:
        return Page(gzip.compress(body, 5, mtime=0), content_type, "gzip")
    if "deflate" in encodings:
        return Page(zlib.compress(body, 5), content_type, "deflate")
    return Page(body, content_type)


def _escape(value: str) -> str:
    if '"' in value or "\\" in value or "\n" in value:
        return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
    return value
