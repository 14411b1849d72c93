"""Whether backends got fair shares: a chi-square test, so that no count is fixed and chance alone hardly ever fails."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Final

_DEVIATIONS: Final = 4.75
"""Of the normal distribution: chance goes beyond in one of a million runs."""


def limit(freedom: int) -> float:
    """What chi-square exceeds in one of a million runs, with so many degrees of freedom (Wilson and Hilferty)."""
    spread = 2 / (9 * freedom)
    return freedom * (1 - spread + _DEVIATIONS * math.sqrt(spread)) ** 3


def chi_square(counts: Mapping[str, int]) -> float:
    """Of counts that should be equal."""
    expected = sum(counts.values()) / len(counts)
    return sum((count - expected) ** 2 for count in counts.values()) / expected


def unfair(counts: Counter[str], places: frozenset[str]) -> str:
    """A line if `places` did not get equal shares beyond what chance explains, else nothing."""
    full = {place: counts[place] for place in sorted(places)}
    if len(full) < 2 or not sum(full.values()):
        return ""
    value, most = chi_square(full), limit(len(full) - 1)
    return f"shares {full} are no chance: chi-square {value:.1f}, limit {most:.1f}" if value > most else ""
