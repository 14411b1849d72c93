"""One generation of the datapath: programs and maps of this version, and how they take the place of a former one's.

VERSION is a digest of the maps' layout and sizes. An agent whose version differs fills maps of its own beside those in
force, takes over what programs have noted there (inheritance.py), then switches the links over one by one and removes
the former maps. With the same version the maps stay, and only the programs are exchanged.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from bpfproxy.config import Settings
from bpfproxy.datapath import attach, bpffs, calls, loader, schema, sockdestroy
from bpfproxy.datapath.hooks import DeviceHooks
from bpfproxy.errors import BpfproxyError
from bpfproxy.events import emit
from bpfproxy.model.address import v4_mapped
from bpfproxy.proxiers.ebpf import packet
from bpfproxy.proxiers.ebpf.devices import DeviceTable, take_programs
from bpfproxy.proxiers.ebpf.inheritance import FLOWS, SOCKETS, Former, Ids
from bpfproxy.proxiers.ebpf.packet_tables import write_device
from bpfproxy.proxiers.ebpf.tables import Gone

log = logging.getLogger(__name__)

_SOCKET_LEVEL: Final = ("sock_lb",)
"""File of the C tree."""
_ASIDE: Final = "_former"


class Generation:
    """Loaded programs and maps, and their attachments. The packet level's programs take seconds to load, so they wait
    for the first device, unless an earlier agent has had them."""

    def __init__(
        self, settings: Settings, cgroup: Path, sizes: Mapping[str, int], constants: Mapping[str, int]
    ) -> None:
        self._loader, self._cgroup, self._sizes, self._constants = settings.loader, cgroup, sizes, constants
        self._top = bpffs.mount(settings.state_dir)
        self._links = self._top / "links"
        self._maps = self._top / f"maps-{loader.maps_version(sizes)}"
        others = [path for path in map_directories(self._top) if path != self._maps]
        self._former = [Former(path, _record(settings.state_dir, path)) for path in reversed(others)]
        """The newest first."""
        self.ids = self._former[-1].ids() if self._former else Ids()
        self._maps.mkdir(exist_ok=True)
        self._write_record(settings.state_dir, others)
        packets = settings.acceleration != "none"
        for former in self._former:
            former.share(self._maps, (*SOCKETS, *(FLOWS if packets else ())), sizes)
        self._set_calls_aside()
        self.loaded = self._load(_SOCKET_LEVEL)
        log.info("event=loaded loader=%s maps=%s", self.loaded.loader, self._maps.name)
        self.devices = self._device_table() if packets else None
        self._packets_refused = ""
        if packets and any((path / FLOWS[0]).exists() for path in (self._maps, *others)):
            self.load_packets()
        self._left = True
        """There may be programs and maps of a former generation."""

    def _device_table(self) -> DeviceTable:
        return DeviceTable(
            DeviceHooks(self._top),
            held=bool(self._former),
            attached_xdp=lambda plan: write_device(self.loaded.maps, plan, xdp=True),
        )

    def load_packets(self) -> str:
        """Load the packet level, if that is not done yet. Returns why that cannot be; it is not tried again then."""
        if self.devices is None or self.devices.equipped or self._packets_refused:
            return self._packets_refused
        try:
            more = self._load(packet.PROGRAMS)
        except BpfproxyError as error:
            self._packets_refused = str(error)
            emit(log, logging.ERROR, "packet_level_refused", reason=error, instead="socket level alone")
            return self._packets_refused
        calls.fill(more)
        self.devices.equip(take_programs(more.programs))
        more.close_programs()
        for name, map_ in more.maps.items():
            if self.loaded.maps.setdefault(name, map_) is not map_:
                map_.close()
        log.info("event=loaded loader=%s maps=%s level=packets", more.loader, self._maps.name)
        return ""

    def activate(self, complete: bool) -> None:
        """Attach the programs, or switch the links to them, once; and remove what nobody uses any more."""
        if self.loaded.programs and (complete or not self._former):
            self._switch()
        if self._left and not self.loaded.programs and (self.devices is None or self.devices.in_force()):
            self._remove_former()

    def close(self) -> None:
        """Release all descriptors; what is attached stays."""
        if self.devices:
            self.devices.close()
        self.loaded.close()

    def destroy_sockets(self, gone: Mapping[int, Gone]) -> None:
        """End connected UDP sockets, so that their owners connect again and get a live backend."""
        wanted = {cookie: (v4_mapped(item.backend.address), item.backend.port) for cookie, item in gone.items()}
        result = sockdestroy.destroy_udp(self._cgroup, wanted)
        log.info("event=udp_sockets_destroyed sockets=%d namespaces=%d", result.sockets, result.namespaces)
        for reason, count in result.skipped.items():
            log.warning("event=udp_sockets_skipped count=%d reason=%r", count, reason)

    def _load(self, programs: Sequence[str]) -> loader.Loaded:
        spec = loader.LoadSpec(
            programs=tuple(programs), constants=self._constants, sizes=self._sizes, pin_dir=self._maps
        )
        return loader.load(spec, self._loader)

    def _switch(self) -> None:
        for _ in range(2):  # the second finds little, so that little comes between it and the switch
            self._copy()
        target = attach.CgroupTarget(self._cgroup)
        outcomes = [
            attach.attach(self._links, program.name, program, target)
            for program in attach.of_cgroups(self.loaded.programs.values())
        ]
        if self.devices:
            self.devices.release()
        else:
            DeviceHooks(self._top).detach_all()  # an earlier agent may have had the packet level
        self._copy()
        self.loaded.close_programs()
        changed = sum(outcome is not attach.Outcome.UNCHANGED for outcome in outcomes)
        log.info("event=attached cgroup=%s links=%d changed=%d", self._cgroup, len(outcomes), changed)

    def _copy(self) -> None:
        for former in self._former:
            former.copy(self.loaded.maps)

    def _remove_former(self) -> None:
        self._copy()
        for former in self._former:
            former.remove()
        self._former = []
        for path in self._maps.glob(f"*{_ASIDE}*"):
            path.unlink()
        self._left = False

    def _set_calls_aside(self) -> None:
        """Programs that are attached go on with the tail calls of their own generation until they are replaced: an
        array of programs that is pinned nowhere is emptied."""
        for layer in calls.LAYERS:
            path = self._maps / f"{layer}_calls"
            if path.exists():
                number = next(n for n in itertools.count() if not path.with_name(f"{path.name}{_ASIDE}{n}").exists())
                path.rename(path.with_name(f"{path.name}{_ASIDE}{number}"))

    def _write_record(self, state_dir: Path, others: Sequence[Path]) -> None:
        """Write the schema of our maps down. Records of maps that are gone (the machine was started again) go, too."""
        record = _record(state_dir, self._maps)
        fresh = record.with_suffix(".new")
        fresh.write_text(schema.written())
        fresh.replace(record)
        kept = {record, *(_record(state_dir, path) for path in others)}
        for path in records(state_dir):
            if path not in kept:
                path.unlink()


def map_directories(top: Path) -> list[Path]:
    """Those of all generations, the one that the attached programs use first."""
    found = (path for path in top.iterdir() if path.name.startswith("maps-"))
    return sorted(found, key=lambda path: path.stat().st_ctime_ns)


def records(state_dir: Path) -> list[Path]:
    """Of the layouts of maps, a file for each generation."""
    return sorted(state_dir.glob("maps-*.h"))


def _record(state_dir: Path, maps: Path) -> Path:
    return state_dir / f"{maps.name}.h"
