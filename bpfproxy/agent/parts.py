"""What an agent is put together from: lock, proxiers, sources. The real ones are loaded when they are used."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Protocol, TypeVar

from bpfproxy.config import Settings
from bpfproxy.errors import InputError, UnsupportedError
from bpfproxy.lock import StateLock
from bpfproxy.model.address import Address
from bpfproxy.model.device import NetworkState
from bpfproxy.model.event import Update
from bpfproxy.proxiers.base import Proxier
from bpfproxy.proxiers.modes import MODES, lifecycle

Item = TypeVar("Item", covariant=True)


class Source(Protocol[Item]):
    """See `sources.base`."""

    async def run(self, sink: Callable[[Item], None]) -> None:
        """Call `sink` with all that there is, then with each change, until cancelled."""
        ...


class Parts(Protocol):
    """What an agent is put together from."""

    def lock(self) -> AbstractContextManager[object]:
        """Held while the agent runs. Raises AlreadyRunningError, PermissionsError."""
        ...

    def open_proxier(self, mode: str) -> Proxier:
        """Called in the worker thread. Raises UnsupportedError where there is no such mode, or not here."""
        ...

    def modes_present(self) -> Iterable[str]:
        """Modes of which an earlier run has left something in the kernel. Called in the worker thread."""
        ...

    def cleanup(self, mode: str) -> list[str]:
        """Remove all that a mode has in the kernel; returns what was removed. Called in the worker thread."""
        ...

    def node_addresses(self) -> Iterable[Address]:
        """On the node's interfaces, now."""
        ...

    def network(self) -> NetworkState:
        """The node's devices, now."""
        ...

    def object_source(self, refused: Callable[[InputError], None]) -> Source[Update]:
        """Delivers objects, and tells `refused` of what cannot be accepted. `run` again goes on where it stood."""
        ...

    def address_source(self) -> Source[frozenset[Address]]:
        """Delivers the node's addresses whenever they change."""
        ...

    def network_source(self) -> Source[NetworkState]:
        """Delivers the node's devices whenever they, or the ways to other hosts, change."""
        ...


class NodeParts:
    """The real parts: manifest files, netlink, and the proxiers of this kernel."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def lock(self) -> AbstractContextManager[object]:
        """See `Parts.lock`."""
        lifecycle(self._settings.proxy_mode).require()
        return StateLock(self._settings.state_dir)

    def open_proxier(self, mode: str) -> Proxier:
        """See `Parts.open_proxier`."""
        if mode not in MODES:
            raise UnsupportedError(f"expected one of {', '.join(MODES)}")
        return lifecycle(mode).open_proxier(self._settings)

    def modes_present(self) -> Iterable[str]:
        """See `Parts.modes_present`."""
        return [mode for mode in MODES if lifecycle(mode).present(self._settings.state_dir)]

    def cleanup(self, mode: str) -> list[str]:
        """See `Parts.cleanup`."""
        return lifecycle(mode).cleanup(self._settings.state_dir)

    def node_addresses(self) -> Iterable[Address]:
        """See `Parts.node_addresses`."""
        from bpfproxy.sources.addresses import node_addresses

        return node_addresses()

    def network(self) -> NetworkState:
        """See `Parts.network`."""
        from bpfproxy.sources.devices import network_state

        return network_state()

    def object_source(self, refused: Callable[[InputError], None]) -> Source[Update]:
        """See `Parts.object_source`."""
        from bpfproxy.sources.files import FilesSource

        return FilesSource(self._settings.manifests, refused)

    def address_source(self) -> Source[frozenset[Address]]:
        """See `Parts.address_source`."""
        from bpfproxy.sources.addresses import AddressSource

        return AddressSource()

    def network_source(self) -> Source[NetworkState]:
        """See `Parts.network_source`."""
        from bpfproxy.sources.devices import DeviceSource

        return DeviceSource()
