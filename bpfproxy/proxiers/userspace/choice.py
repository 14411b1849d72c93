"""Which backend a client gets: in turn, or the one that it had."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Final

from bpfproxy.model.address import Address
from bpfproxy.model.frontend import Backend

_CLIENTS_MAX: Final = 65536


class Affinities:
    """Which backend each client of a ServicePort has. Of too many clients the least recent one is forgotten.

    `clock` is in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, size: int = _CLIENTS_MAX) -> None:
        self._clock = clock
        self._size = size
        self._backends: OrderedDict[Address, tuple[Backend, float]] = OrderedDict()

    def of(self, client: Address, timeout: float) -> Backend | None:
        """The backend of `client`, unless its last connection is `timeout` seconds ago."""
        backend, since = self._backends.get(client, (None, 0.0))
        return backend if backend is not None and self._clock() - since < timeout else None

    def note(self, client: Address, backend: Backend, timeout: float) -> None:
        """A new connection of `client` went to `backend`. Clients whose last one is `timeout` seconds ago are
        forgotten."""
        now = self._clock()
        self._backends[client] = (backend, now)
        self._backends.move_to_end(client)
        while len(self._backends) > self._size or now - next(iter(self._backends.values()))[1] >= timeout:
            self._backends.popitem(last=False)

    def __len__(self) -> int:
        return len(self._backends)


class Choice:
    """Chooses among the backends of one frontend."""

    def __init__(self, affinities: Affinities) -> None:
        self.affinities = affinities
        """Of the ServicePort that the frontend belongs to."""
        self._backends: Sequence[Backend] = ()
        self._timeout = 0
        self._turn = 0

    def set(self, backends: Sequence[Backend], affinity_timeout: int) -> None:
        """Choose among these from now on; `affinity_timeout` in seconds, 0 without affinity."""
        self._backends = backends
        self._timeout = affinity_timeout

    def order(self, client: Address) -> list[Backend]:
        """All backends in the order in which a new connection of `client` should try them: first the one that it
        sticks to, then from the one whose turn it is."""
        if not self._backends:
            return []
        self._turn = (self._turn + 1) % len(self._backends)
        order = [*self._backends[self._turn :], *self._backends[: self._turn]]
        if self._timeout:
            had = self.affinities.of(client, self._timeout)
            if had in order:
                order.remove(had)
                order.insert(0, had)
            else:
                # For those that come while this one is connecting.
                self.affinities.note(client, order[0], self._timeout)
        return order

    def took(self, client: Address, backend: Backend) -> None:
        """A connection of `client` went to `backend`."""
        if self._timeout:
            self.affinities.note(client, backend, self._timeout)
