"""Latencies go in as nanoseconds and come out within a percent."""

from __future__ import annotations

import json
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.histogram import HIGHEST_NS, LatencyHistogram, bucket_of, middle_of

latencies = st.integers(min_value=0, max_value=HIGHEST_NS)


@given(latencies)
def test_a_bucket_middle_is_within_one_percent(value: int) -> None:
    assert abs(middle_of(bucket_of(value)) - value) <= value * 0.01


@given(latencies, latencies)
def test_buckets_keep_the_order(first: int, second: int) -> None:
    low, high = sorted((first, second))
    assert bucket_of(low) <= bucket_of(high)


@given(st.integers(min_value=0, max_value=bucket_of(HIGHEST_NS)))
def test_a_middle_lies_in_its_bucket(bucket: int) -> None:
    assert bucket_of(middle_of(bucket)) == bucket


@given(st.lists(latencies, min_size=1, max_size=200), st.sampled_from([1, 25, 50, 90, 99, 100]))
def test_percentiles_are_near_the_exact_ones(values: list[int], percent: int) -> None:
    histogram = LatencyHistogram()
    histogram.record_all(values)
    exact = sorted(values)[max(1, -(-len(values) * percent // 100)) - 1]
    assert abs(histogram.percentile(percent) - exact) <= exact * 0.01 + 1


@given(st.lists(latencies, max_size=50), st.lists(latencies, max_size=50))
def test_merged_is_the_same_as_recorded_together(first: list[int], second: list[int]) -> None:
    together, left, right = LatencyHistogram(), LatencyHistogram(), LatencyHistogram()
    together.record_all(first + second)
    left.record_all(first)
    right.record_all(second)
    left.merge(right)
    assert left == together


@given(st.lists(latencies, max_size=50))
def test_json_keeps_everything(values: list[int]) -> None:
    histogram = LatencyHistogram()
    histogram.record_all(values)
    assert LatencyHistogram.from_json(json.loads(json.dumps(histogram.to_json()))) == histogram


def test_out_of_range_is_clipped_and_counted() -> None:
    histogram = LatencyHistogram()
    histogram.record(HIGHEST_NS * 2)
    histogram.record(-5)
    assert histogram.clipped == 1
    assert histogram.lowest_ns == 0
    assert histogram.highest_ns == HIGHEST_NS


def test_mean_is_exact() -> None:
    values = [1, 1_000_003, 77]
    histogram = LatencyHistogram()
    histogram.record_all(values)
    assert histogram.mean_ns == statistics.fmean(values)


def test_empty_histogram_has_zeroes() -> None:
    assert LatencyHistogram().percentile(99) == 0
    assert LatencyHistogram().mean_ns == 0


@pytest.mark.parametrize("document", [{}, {"counts": [1]}, {"counts": {}, "total": "1"}])
def test_a_strange_document_is_refused(document: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="histogram"):
        LatencyHistogram.from_json(document)
