"""When to sync next: at least so long after the run before, at most so long until everything is looked over, and
later and later after failures.

Decides only; whoever owns a `Runner` waits and runs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable


class Backoff:
    """Pauses between attempts that fail in a row, in seconds: `first`, then doubled up to `maximum`."""

    def __init__(self, first: float = 1.0, maximum: float = 30.0) -> None:
        self._first = first
        self._maximum = maximum
        self._failures = 0

    @property
    def failures(self) -> int:
        """In a row."""
        return self._failures

    def failed(self) -> float:
        """One more failure. Returns the pause before the next attempt."""
        pause = self._first * 2.0 ** min(self._failures, 64)
        self._failures += 1
        return min(pause, self._maximum)

    def reset(self) -> None:
        """An attempt succeeded."""
        self._failures = 0


class Runner:
    """Bounds the frequency of runs. Times are seconds of `clock`, which must not go back.

    A run is due when it was requested or when a failed one is to be tried again, but not within `minimum` seconds of
    the start of the run before. A *full* run is due `maximum` seconds after the last full one. After failures the next
    try comes when `backoff` says.
    """

    def __init__(
        self,
        *,
        minimum: float,
        maximum: float,
        backoff: Backoff | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._minimum = minimum
        self._maximum = maximum
        self._backoff = backoff or Backoff()
        self._clock = clock
        self._last = -math.inf
        self._last_full = clock()
        self._requested = False
        self._retry_at = math.inf

    @property
    def failures(self) -> int:
        """Failed runs in a row."""
        return self._backoff.failures

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
            self._backoff.reset()
        else:
            self._retry_at = self._clock() + self._backoff.failed()
