"""From settings to a running datapath, and back to nothing.

    STATE/lock              held by the agent
    STATE/bpf               a bpffs of our own
    STATE/bpf/maps-VERSION  the service tables and the state of flows
    STATE/maps-VERSION.h    their layout
    STATE/bpf/links         the attachments
    STATE/bpf/clsact        those to devices by clsact, on kernels without tcx

VERSION: see generation.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from ipaddress import ip_network
from pathlib import Path
from typing import Final

from bpfproxy.config import Settings
from bpfproxy.datapath import abi, attach, bpffs, cgroup, features, loader, netns_cookie
from bpfproxy.datapath.device import Hook
from bpfproxy.datapath.hooks import DeviceHooks
from bpfproxy.datapath.maps import Map
from bpfproxy.datapath.probe import probe
from bpfproxy.datapath.probe_device import probe_devices
from bpfproxy.errors import InputError, NotRunningError
from bpfproxy.model.device import DevicePlan
from bpfproxy.model.finding import Finding
from bpfproxy.model.frontend import Scope
from bpfproxy.model.service import Scheduler
from bpfproxy.proxiers.ebpf import flowcodec, packet, snapshot
from bpfproxy.proxiers.ebpf.conntrack import Conntrack
from bpfproxy.proxiers.ebpf.flowcodec import Names
from bpfproxy.proxiers.ebpf.generation import Generation, map_directories, records
from bpfproxy.proxiers.ebpf.packet import Timeouts
from bpfproxy.proxiers.ebpf.proxier import EbpfProxier
from bpfproxy.proxiers.ebpf.render import EbpfRenderer
from bpfproxy.proxiers.ebpf.view import View

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
    generation = Generation(settings, root, sizes(settings), constants(settings))
    return EbpfProxier(
        generation.loaded.maps,
        renderer(settings),
        grace_period=settings.grace_period,
        activate=generation.activate,
        destroy_sockets=generation.destroy_sockets,
        close=generation.close,
        devices=generation.devices,
        load_packets=generation.load_packets,
        former=generation.ids,
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
    maps = _open_maps(state_dir)
    try:
        return View(maps)
    except BaseException:
        loader.close_maps(maps.values())
        raise


def attached(state_dir: Path) -> dict[tuple[Hook, int], int]:
    """What runs at the devices: the ids of programs, by hook and device. Raises NotRunningError if there is no
    datapath."""
    top = bpffs.locate(state_dir)
    if top is None:
        raise _not_running(state_dir)
    return DeviceHooks(top).standing()


@contextmanager
def open_conntrack(state_dir: Path, settings: Mapping[str, object]) -> Iterator[tuple[Conntrack, Names]]:
    """The flows of the datapath under a state directory, and the Services that they belong to. `settings`: those of
    the agent that loaded it, by field; defaults where they say nothing. Raises NotRunningError if there is none."""
    maps = _open_maps(state_dir)
    timeouts = {
        name: value
        for name in Timeouts.__slots__
        if isinstance(value := settings.get(f"conntrack_{name}"), int | float)
    }
    try:
        yield Conntrack(maps, Timeouts(**timeouts)), Names(snapshot.take(maps).frontends)
    finally:
        loader.close_maps(maps.values())


def _open_maps(state_dir: Path) -> dict[str, Map]:
    top = bpffs.locate(state_dir)
    directories = map_directories(top) if top else []
    if not directories:
        raise _not_running(state_dir)
    return loader.open_maps(directories[0])


def present(state_dir: Path) -> bool:
    """Whether a datapath, or what is left of one, is under a state directory."""
    return (state_dir / "bpf").is_dir()


def _not_running(state_dir: Path) -> NotRunningError:
    return NotRunningError(f"no datapath under {state_dir}: is `bpfproxy run` using another --state-dir?")


def cleanup(state_dir: Path) -> list[str]:
    """Remove every trace of a datapath; returns what was removed, empty if there was nothing. The caller holds the
    lock of the state directory."""
    removed: list[str] = []
    top = bpffs.locate(state_dir)
    if top is not None:
        removed += [f"link {name}" for name in DeviceHooks(top, tcx=True).detach_all()]
        removed += [f"link {name}" for name in attach.detach_all(top / "links")]
        for directory in map_directories(top):
            removed += [f"map {path.name}" for path in sorted(directory.iterdir())]
    if bpffs.unmount(state_dir):
        removed.append(f"bpffs {state_dir / 'bpf'}")
    for record in records(state_dir):
        record.unlink()
    return removed


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
        "node_netns": netns_cookie.current(),
        "pod_scope4": Scope.INTERNAL if 4 in detected else Scope.EXTERNAL,
        "pod_scope6": Scope.INTERNAL if 6 in detected else Scope.EXTERNAL,
        "snat_first": first,
        "snat_last": last,
        "has_set_retval": int(features.has_helper("cgroup/connect4", "bpf_set_retval")),
        **packet.constants(flowcodec.timeouts_of(settings), host_routing=settings.host_routing, error_rate=_ERROR_RATE),
    }
