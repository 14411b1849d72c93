"""What a measure yields, and whether it is what was aimed at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from msgspec import Struct

from bpfproxy.bench import stats

Unit = Literal["ratio", "ns/op", "ns", "ms", "s", "MiB", "Gb/s"]
"""`ns/op` stands for a rate as well."""


class Aim(Struct, frozen=True):
    """What a figure should be: at least, or at most, `limit`."""

    relation: Literal["≥", "≤"]
    limit: float

    def met(self, value: float) -> bool:
        """Whether `value` is as aimed."""
        return value >= self.limit if self.relation == "≥" else value <= self.limit


class Figure(Struct, frozen=True):
    """The median of a measure's samples, and their spread."""

    measure: str
    name: str
    unit: Unit
    value: float
    """The median."""
    low: float
    high: float
    """The median's confidence interval of 95 % (see `stats.median_interval`)."""
    p99: float
    samples: int
    aim: Aim | None = None
    met: bool | None = None
    """None without an aim."""


def figure(measure: str, name: str, unit: Unit, samples: Sequence[float], aim: Aim | None = None) -> Figure:
    """Sum up `samples`, of which there is at least one."""
    low, high = stats.median_interval(samples)
    value = stats.median(samples)
    return Figure(
        measure=measure,
        name=name,
        unit=unit,
        value=value,
        low=low,
        high=high,
        p99=stats.percentile(samples, 0.99),
        samples=len(samples),
        aim=aim,
        met=aim.met(value) if aim else None,
    )
