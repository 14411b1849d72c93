"""When to sync next: at least so long after the run before, at most so long until everything is looked over, and
later and later after failures.

Decides only; whoever owns a `Runner` waits and runs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable


class Runner:
    """Bounds the frequency of runs. Times are seconds of `clock`, which must not go back.

    A run is due when it was requested or when a failed one is to be tried again, but not within `minimum` seconds of
    the start of the run before. A *full* run is due `maximum` seconds after the last full one. After the n-th failure
    in a row the next try comes `retry` · 2ⁿ⁻¹ seconds later, at most `retry_maximum`.
    """

    def __init__(
        self,
        *,
        minimum: float,
        maximum: float,
        retry: float = 1.0,
        retry_maximum: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._minimum = minimum
        self._maximum = maximum
        self._retry = retry
        self._retry_maximum = retry_maximum
        self._clock = clock
        self._last = -math.inf
        self._last_full = clock()
        self._requested = False
        self._retry_at = math.inf
        self._failures = 0

    @property
    def failures(self) -> int:
        """Failed runs in a row."""
        return self._failures

    def request(self) -> None:
        """Something changed."""
        self._requested = True

    def delay(self) -> float:
        """Seconds until the next run is due; 0 if it is."""
        now = self._clock()
        due = now if self._requested else min(self._retry_at, self._last_full + self._maximum)
        return max(0.0, max(due, self._last + self._minimum) - now)

    def begin(self) -> bool:
        """A run begins, and takes in all requests so far. Returns whether it is to be a full one."""
        now = self._last = self._clock()
        self._requested = False
        self._retry_at = math.inf
        full = now >= self._last_full + self._maximum
        if full:
            self._last_full = now
        return full

    def end(self, *, ok: bool) -> None:
        """The run ended; unless it was `ok`, it is tried again even if nothing changes."""
        if ok:
            self._failures = 0
            return
        pause = self._retry * 2.0 ** min(self._failures, 32)
        self._failures += 1
        self._retry_at = self._clock() + min(pause, self._retry_maximum)
