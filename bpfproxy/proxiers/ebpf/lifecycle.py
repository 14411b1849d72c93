"""From settings to a running datapath, and back to nothing.

    STATE/lock              held by the agent
    STATE/bpf               a bpffs of our own
    STATE/bpf/maps-VERSION  the service tables and the state of flows
    STATE/bpf/links         the attachments
    STATE/bpf/clsact        those to devices by clsact, on kernels without tcx

VERSION is a digest of the ABI and the maps' sizes. An agent whose version differs fills maps of its own beside those
in force, then switches the links over one by one and removes the former maps.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence
from ipaddress import ip_network
from pathlib import Path
from typing import Final

from bpfproxy.config import Settings
from bpfproxy.datapath import abi, attach, bpffs, calls, cgroup, features, libbpf, loader, sockdestroy
from bpfproxy.datapath.hooks import DeviceHooks
from bpfproxy.datapath.maps import Map
from bpfproxy.datapath.probe import probe
from bpfproxy.datapath.probe_device import probe_devices
from bpfproxy.errors import InputError, NotRunningError
from bpfproxy.model.address import v4_mapped
from bpfproxy.model.device import DevicePlan
from bpfproxy.model.finding import Finding
from bpfproxy.model.frontend import Scope
from bpfproxy.model.service import Scheduler
from bpfproxy.proxiers.ebpf import flowcodec, packet, snapshot
from bpfproxy.proxiers.ebpf.conntrack import Conntrack
from bpfproxy.proxiers.ebpf.devices import DeviceTable, take_programs
from bpfproxy.proxiers.ebpf.flowcodec import Names
from bpfproxy.proxiers.ebpf.packet import Timeouts
from bpfproxy.proxiers.ebpf.packet_tables import write_device
from bpfproxy.proxiers.ebpf.proxier import EbpfProxier
from bpfproxy.proxiers.ebpf.render import EbpfRenderer
from bpfproxy.proxiers.ebpf.tables import Gone
from bpfproxy.proxiers.ebpf.view import View

log = logging.getLogger(__name__)

_SOCKET_LEVEL: Final = ("sock_lb",)
"""File of the C tree."""
_SOCKET_MAPS: Final = {"sockets": "struct socket_state", "tcp_peers": "struct tcp_peer"}
"""Their values. They hold no ids of other maps, so they are carried over to new ones: sockets keep their original
destinations."""
_ASIDE: Final = "_former"
_NODE_ADDRESSES_MAX: Final = 4096
_NETWORKS_MAX: Final = 16384
_ERROR_RATE: Final = 1000
"""ICMP errors of our own, per second and CPU: as the kernel's icmp_msgs_per_sec."""


def renderer(settings: Settings) -> EbpfRenderer:
    """The pure half, for which no kernel is needed."""
    return EbpfRenderer(Scheduler[settings.scheduler.upper().replace("-", "_")])


def require() -> None:
    """Raises PermissionsError that names the capabilities that this process lacks."""
    features.require_capabilities()


def open_proxier(settings: Settings) -> EbpfProxier:
    """Load programs and maps; nothing is attached before `EbpfProxier.activate`.

    The caller holds the lock of the state directory. Raises PermissionsError, UnsupportedError, DatapathError.
    """
    require()
    root = settings.cgroup or cgroup.mount_point()
    if not cgroup.is_cgroup2(root):
        raise InputError(f"--cgroup {root}: expected a directory of a cgroup v2 file system")
    datapath = _Datapath(settings, root)
    return EbpfProxier(
        datapath.loaded.maps,
        renderer(settings),
        grace_period=settings.grace_period,
        activate=datapath.activate,
        destroy_sockets=datapath.destroy_sockets,
        close=datapath.close,
        devices=datapath.devices,
        timeouts=flowcodec.timeouts_of(settings),
    )


def check(settings: Settings, devices: Sequence[DevicePlan]) -> list[Finding]:
    """What this kernel and machine offer, what would be used, and why; `devices` is the plan for those of this node."""
    return [
        *probe(settings.state_dir, settings.cgroup, settings.loader),
        *probe_devices(settings.state_dir, devices, settings.device, host_routing=settings.host_routing),
    ]


def open_view(state_dir: Path) -> View:
    """A look at the datapath under a state directory. Raises NotRunningError if there is none."""
    return View(_open_maps(state_dir))


def open_conntrack(state_dir: Path, settings: Mapping[str, object]) -> tuple[Conntrack, Names]:
    """The flows of the datapath under a state directory, and the Services that they belong to. `settings`: those of
    the agent that loaded it, by field; defaults where they say nothing. Raises NotRunningError if there is none."""
    maps = _open_maps(state_dir)
    timeouts = {
        name: value
        for name in Timeouts.__slots__
        if isinstance(value := settings.get(f"conntrack_{name}"), int | float)
    }
    return Conntrack(maps, Timeouts(**timeouts)), Names(snapshot.take(maps).frontends)


def _open_maps(state_dir: Path) -> dict[str, Map]:
    top = bpffs.locate(state_dir)
    directory = _maps_in_force(top) if top else None
    if directory is None:
        raise NotRunningError(f"no datapath under {state_dir}: is `bpfproxy run` using another --state-dir?")
    return loader.open_maps(directory)


def present(state_dir: Path) -> bool:
    """Whether a datapath, or what is left of one, is under a state directory."""
    return (state_dir / "bpf").is_dir()


def cleanup(state_dir: Path) -> list[str]:
    """Remove every trace of a datapath; returns what was removed, empty if there was nothing. The caller holds the
    lock of the state directory."""
    removed: list[str] = []
    top = bpffs.locate(state_dir)
    if top is not None:
        removed += [f"link {name}" for name in DeviceHooks(top, tcx=True).detach_all()]
        removed += [f"link {name}" for name in attach.detach_all(top / "links")]
        for directory in _map_directories(top):
            removed += [f"map {path.name}" for path in sorted(directory.iterdir())]
    if bpffs.unmount(state_dir):
        removed.append(f"bpffs {state_dir / 'bpf'}")
    return removed


class _Datapath:
    """A loaded datapath and its attachments."""

    def __init__(self, settings: Settings, root: Path) -> None:
        all_sizes = self._sizes = sizes(settings)
        self._cgroup = root
        self._top = bpffs.mount(settings.state_dir)
        self._links = self._top / "links"
        self._maps = self._top / f"maps-{loader.maps_version(all_sizes)}"
        self._replaces = [path for path in _map_directories(self._top) if path != self._maps]
        self._maps.mkdir(exist_ok=True)
        self._carry_sockets_over()
        self._set_calls_aside()
        spec = loader.LoadSpec(
            programs=(*_SOCKET_LEVEL, *(packet.PROGRAMS if settings.acceleration != "none" else ())),
            constants=constants(settings),
            sizes=all_sizes,
            pin_dir=self._maps,
        )
        self.loaded = loader.load(spec, settings.loader)
        calls.fill(self.loaded)
        log.info("event=loaded loader=%s maps=%s", self.loaded.loader, self._maps.name)
        programs = take_programs(self.loaded.programs)
        self.devices = self._device_table(self.loaded.maps, programs) if programs else None

    def _device_table(self, maps: Mapping[str, Map], programs: dict[str, loader.Program]) -> DeviceTable:
        return DeviceTable(
            DeviceHooks(self._top),
            programs,
            held=bool(self._replaces),
            attached_xdp=lambda plan: write_device(maps, plan, xdp=True),
        )

    def activate(self, complete: bool) -> None:
        """Attach the programs, or switch the links to them. Does its work once."""
        if not self.loaded.programs or (not complete and self._replaces):
            return
        target = attach.CgroupTarget(self._cgroup)
        outcomes = [
            attach.attach(self._links, program.name, program, target)
            for program in attach.of_cgroups(self.loaded.programs.values())
        ]
        if self.devices:
            self.devices.release()
        else:
            DeviceHooks(self._top).detach_all()  # an earlier agent may have had the packet level
        self.loaded.close_programs()
        for former in self._replaces:
            bpffs.remove_tree(former)
        self._replaces = []
        for path in self._maps.glob(f"*{_ASIDE}*"):
            path.unlink()
        changed = sum(outcome is not attach.Outcome.UNCHANGED for outcome in outcomes)
        log.info("event=attached cgroup=%s links=%d changed=%d", self._cgroup, len(outcomes), changed)

    def _set_calls_aside(self) -> None:
        """Programs that are attached go on with the tail calls of their own generation until they are replaced: an
        array of programs that is pinned nowhere is emptied."""
        for layer in calls.LAYERS:
            path = self._maps / f"{layer}_calls"
            if path.exists():
                number = next(n for n in itertools.count() if not path.with_name(f"{path.name}{_ASIDE}{n}").exists())
                path.rename(path.with_name(f"{path.name}{_ASIDE}{number}"))

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

    def _carry_sockets_over(self) -> None:
        for name, value in _SOCKET_MAPS.items():
            path = self._maps / name
            for former in self._replaces:
                if not path.exists() and (former / name).exists():
                    self._carry_over(former / name, path, value)

    def _carry_over(self, former: Path, path: Path, value: str) -> None:
        with Map.open(former) as map_:
            wanted = self._sizes.get(path.name, 0)
            if map_.shape.value_size == abi.sizeof(value) and map_.max_entries == wanted:
                libbpf.pin(map_.fd, path)


def sizes(settings: Settings) -> dict[str, int]:
    """max_entries by map."""
    return {
        "frontends4": settings.max_frontends,
        "frontends6": settings.max_frontends,
        "frontend_stats": settings.max_frontends,
        "sets": settings.max_sets,
        "set_names": settings.max_sets,
        "round_robin": settings.max_sets,
        "backends": settings.max_backends,
        "backend_stats": settings.max_backends,
        "slots": -(-settings.max_slots // 2),
        "node_addresses": _NODE_ADDRESSES_MAX,
        "affinities": settings.max_affinities,
        "udp_sessions": settings.max_udp_sessions,
        "udp_sockets": settings.max_udp_sessions,
        "tcp_peers": settings.max_tcp_peers,
        "metrics": abi.constant("HOOK_COUNT") * abi.constant("REASON_COUNT"),
        **packet.sizes(flows=settings.max_flows, networks=_NETWORKS_MAX, backends=settings.max_backends),
    }


def constants(settings: Settings) -> dict[str, int]:
    """A value for each field of `struct config`."""
    first, last = settings.snat_range()
    detected = {ip_network(cidr).version for cidr in settings.cluster_cidr}
    return {
        "node_netns": features.netns_cookie(),
        "pod_scope4": Scope.INTERNAL if 4 in detected else Scope.EXTERNAL,
        "pod_scope6": Scope.INTERNAL if 6 in detected else Scope.EXTERNAL,
        "snat_first": first,
        "snat_last": last,
        "has_set_retval": int(features.has_helper("cgroup/connect4", "bpf_set_retval")),
        **packet.constants(flowcodec.timeouts_of(settings), host_routing=settings.host_routing, error_rate=_ERROR_RATE),
    }


def _map_directories(top: Path) -> list[Path]:
    return sorted(path for path in top.iterdir() if path.name.startswith("maps-"))


def _maps_in_force(top: Path) -> Path | None:
    """Those that the attached programs use: the oldest, while an agent is filling others beside them."""
    directories = _map_directories(top)
    return min(directories, key=lambda path: path.stat().st_ctime_ns, default=None)
