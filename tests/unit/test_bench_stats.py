"""Statistics and the report of the bench: no kernel, no clock."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpfproxy.bench import stats
from bpfproxy.bench.figures import Aim, figure
from bpfproxy.bench.report import BEGIN, END, Report, replace_between_markers

SAMPLES = st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=60)


def test_median() -> None:
    assert stats.median([3]) == 3
    assert stats.median([5, 1, 3]) == 3
    assert stats.median([4, 1, 3, 2]) == 2.5


def test_percentile_is_the_nearest_rank() -> None:
    values = list(range(100, 0, -1))
    assert stats.percentile(values, 0.99) == 99
    assert stats.percentile(values, 1) == 100
    assert stats.percentile(values, 0.5) == 50
    assert stats.percentile(values, 0) == 1
    assert stats.percentile([7], 0.99) == 7


@pytest.mark.parametrize("call", [stats.median, stats.median_interval, lambda values: stats.percentile(values, 0.5)])
def test_no_values(call: object) -> None:
    assert callable(call)
    with pytest.raises(ValueError, match="at least one value"):
        call([])


@pytest.mark.parametrize(
    ("count", "rank"),
    # Ranks (from 1) of the lower bound, from printed tables of the sign test's 95 % intervals.
    [(6, 1), (8, 1), (9, 2), (11, 2), (12, 3), (15, 4), (20, 6), (25, 8), (30, 10), (40, 14), (50, 18)],
)
def test_interval_of_the_sign_test(count: int, rank: int) -> None:
    assert stats.median_interval(range(1, count + 1)) == (rank, count + 1 - rank)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_interval_of_few_values_is_their_range(count: int) -> None:
    assert stats.median_interval(range(1, count + 1)) == (1, count)


def test_interval_covers_the_true_median_as_often_as_it_says() -> None:
    source = random.Random(1)
    covered = 0
    for _ in range(2000):
        low, high = stats.median_interval([source.expovariate(1) for _ in range(31)])
        covered += low <= math.log(2) <= high
    assert 0.94 < covered / 2000 < 0.99


@given(SAMPLES)
def test_interval_holds_the_median(values: list[float]) -> None:
    low, high = stats.median_interval(values)
    assert low <= stats.median(values) <= high
    assert {low, high} <= set(values)


def test_paired_ratios() -> None:
    assert stats.paired_ratios([1.0, 6.0], [2.0, 3.0]) == [0.5, 2.0]
    with pytest.raises(ValueError, match="shorter"):
        stats.paired_ratios([1.0, 2.0], [1.0])


@pytest.mark.parametrize(
    ("aim", "met"), [(Aim("≥", 2), True), (Aim("≥", 2.1), False), (Aim("≤", 2), True), (Aim("≤", 1.9), False)]
)
def test_aims(aim: Aim, met: bool) -> None:
    assert figure("m", "n", "s", [1, 2, 9], aim).met is met


def test_without_an_aim() -> None:
    assert figure("m", "n", "s", [1]).met is None


def test_markdown() -> None:
    report = Report(quick=False, date="2000-01-01", machine="a machine", load=[0.1, 2.0])
    report.figures = [
        figure("change", "to map", "ms", [0.25] * 45 + [0.5] * 10 + [0.75] * 45, Aim("≤", 1)),
        figure("other", "share", "ratio", [0.5]),
    ]
    assert report.markdown().splitlines() == [
        "Measured on 2000-01-01: a machine; load 0.1 before, up to 2.0 meanwhile.",
        "",
        "| a change | median | 95 % interval | p99 | samples | aim |  |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| to map | 0.500 ms | 0.250 – 0.750 | 0.750 | 100 | ≤ 1 ms | met |",
        "",
        "| other | median | 95 % interval | p99 | samples | aim |  |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| share | 0.500 |  |  | 1 |  |  |",
    ]


def test_markers() -> None:
    text = f"# Title\n{BEGIN}\nold\n{END}\nrest\n"
    assert replace_between_markers(text, "new\n") == f"# Title\n{BEGIN}\nnew\n{END}\nrest\n"


@pytest.mark.parametrize("text", ["", BEGIN, END + BEGIN, BEGIN + END + END, BEGIN + BEGIN + END])
def test_markers_that_are_not_there_once(text: str) -> None:
    with pytest.raises(ValueError, match="once each"):
        replace_between_markers(text, "new")
