"""The seam between the store and whatever knows the objects."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from bpfproxy.model.event import Update


class Source(Protocol):
    """Something that delivers Services, EndpointSlices and Nodes, and then their changes."""

    async def run(self, sink: Callable[[Update], None]) -> None:
        """Call `sink` with the first full list, then with each change, until cancelled.

        `sink` is called in the thread of the event loop and must not block. Errors of the input are reported by other
        means and never end `run`; what was delivered before stays in force.
        """
        ...
