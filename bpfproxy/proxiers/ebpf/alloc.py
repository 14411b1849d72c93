"""Allocation of ids and extents with a grace period.

A program that runs on another CPU may still hold what was freed a moment ago, and a row that is re-used under it
would send a connection to another Service's backend. So what is freed waits before it can be had again.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")

Clock = Callable[[], float]
"""Monotonic seconds."""


class TableFullError(Exception):
    """No id or extent is to be had. The message says how many wait for their grace period."""


class _Quarantine(Generic[T]):
    """Freed things, oldest first."""

    def __init__(self, grace: float, clock: Clock) -> None:
        self._grace = grace
        self._clock = clock
        self._waiting: deque[tuple[float, T]] = deque()

    def add(self, thing: T) -> None:
        self._waiting.append((self._clock() + self._grace, thing))

    def ready(self) -> Iterable[T]:
        waiting = self._waiting
        if waiting and waiting[0][0] <= (now := self._clock()):
            while waiting and waiting[0][0] <= now:
                yield waiting.popleft()[1]

    def __iter__(self) -> Iterator[T]:
        return (thing for _, thing in self._waiting)

    def __len__(self) -> int:
        return len(self._waiting)


class IdAllocator:
    """Ids of a table, from 1 to `size` - 1; 0 is never given, so that a row of zeros points at nothing.

    `used` are the ids found in the kernel at start; the gaps between them are free after the grace period.
    """

    def __init__(self, table: str, size: int, grace: float, clock: Clock, used: Iterable[int] = ()) -> None:
        self._table = table
        self._size = size
        self._quarantine = _Quarantine[int](grace, clock)
        taken = set(used)
        self._next = max(taken, default=0) + 1
        for gap in range(1, self._next):
            if gap not in taken:
                self._quarantine.add(gap)
        self._free: list[int] = []

    def allocate(self) -> int:
        """An id; raises TableFullError."""
        if self._free:
            return self._free.pop()
        if self._next < self._size:
            self._next += 1
            return self._next - 1
        self._free.extend(self._quarantine.ready())
        if self._free:
            return self._free.pop()
        raise TableFullError(
            f"{self._table}: all {self._size - 1} are in use ({len(self._quarantine)} in their grace period)"
        )

    def free(self, number: int) -> None:
        """Give an id back; it can be had again after the grace period."""
        self._quarantine.add(number)
        self._free.extend(self._quarantine.ready())


class ExtentAllocator:
    """Runs of slots in an array of `size` slots. Lengths are rounded up to 8 slots; equal lengths are re-used as they
    are, and only when the end of the array is reached are neighbours joined."""

    GRAIN = 8

    def __init__(self, table: str, size: int, grace: float, clock: Clock, used: Iterable[tuple[int, int]] = ()) -> None:
        """`used`: (base, length) of the extents found in the kernel at start."""
        self._table = table
        self._size = size
        self._quarantine = _Quarantine[tuple[int, int]](grace, clock)
        self._free: defaultdict[int, list[int]] = defaultdict(list)
        self._next = 0
        for base, length in sorted(used):
            if base > self._next:
                self._quarantine.add((self._next, base - self._next))
            self._next = max(self._next, base + self.rounded(length))

    @classmethod
    def rounded(cls, length: int) -> int:
        """The slots that an extent of `length` takes."""
        return (length + cls.GRAIN - 1) & -cls.GRAIN

    def allocate(self, length: int) -> int:
        """The base of an extent of `length` slots; raises TableFullError."""
        length = self.rounded(length)
        for base, ready in self._quarantine.ready():
            self._free[ready].append(base)
        bases = self._free.get(length)
        if bases:
            return bases.pop()
        if self._next + length <= self._size:
            self._next += length
            return self._next - length
        return self._split(length)

    def free(self, base: int, length: int) -> None:
        """Give an extent back; its slots can be had again after the grace period."""
        self._quarantine.add((base, self.rounded(length)))

    def _split(self, length: int) -> int:
        self._join()
        fitting = min((size for size, bases in self._free.items() if bases and size >= length), default=None)
        if fitting is None:
            waiting = sum(size for _, size in self._quarantine)
            raise TableFullError(
                f"{self._table}: no {length} of {self._size} in a row are free ({waiting} in their grace period)"
            )
        base = self._free[fitting].pop()
        if fitting > length:
            self._free[fitting - length].append(base + length)
        return base

    def _join(self) -> None:
        runs = sorted((base, size) for size, bases in self._free.items() for base in bases)
        self._free.clear()
        joined: list[tuple[int, int]] = []
        for base, size in runs:
            if joined and sum(joined[-1]) == base:
                joined[-1] = (joined[-1][0], joined[-1][1] + size)
            else:
                joined.append((base, size))
        for base, size in joined:
            self._free[size].append(base)
