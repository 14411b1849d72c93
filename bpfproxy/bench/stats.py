"""Medians, percentiles and intervals that assume nothing about how samples are distributed. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence


def median(values: Sequence[float]) -> float:
    """The middle value, or the mean of the two middle ones. Raises ValueError without values."""
    if not values:
        raise ValueError("expected at least one value")
    ordered, half = sorted(values), len(values) // 2
    return ordered[half] if len(values) % 2 else (ordered[half - 1] + ordered[half]) / 2


def percentile(values: Sequence[float], share: float) -> float:
    """The least value that at least `share` (0 to 1) of all values do not exceed (nearest rank)."""
    if not values or not 0 <= share <= 1:
        raise ValueError("expected at least one value and a share from 0 to 1")
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def median_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """The narrowest symmetric pair of samples between which the true median lies with at least `confidence`.

    By the sign test: each independent sample is above the median with probability 1/2. Too few samples (five, for
    0.95) give the least and the greatest, with less confidence.
    """
    ordered, count = sorted(values), len(values)
    if not count:
        raise ValueError("expected at least one value")
    outside, index = 0.0, 0
    while index < count // 2:
        outside += math.comb(count, index) / 2 ** (count - 1)
        if 1 - outside < confidence:
            break
        index += 1
    index = max(0, index - 1)
    return ordered[index], ordered[count - 1 - index]


def paired_ratios(values: Sequence[float], references: Sequence[float]) -> list[float]:
    """value / reference of each round."""
    return [value / reference for value, reference in zip(values, references, strict=True)]
