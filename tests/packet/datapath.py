"""The loaded packet level in a namespace of its own, and the tables behind it."""

from __future__ import annotations

import contextlib
import socket
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from bpfproxy.config import Settings
from bpfproxy.datapath import abi, bpffs, calls, loader, testrun
from bpfproxy.datapath.testrun import Outcome
from bpfproxy.lab import netns
from bpfproxy.lab.sandbox import Sandbox
from bpfproxy.model.address import parse_address
from bpfproxy.model.frontend import Backend, Frontend, FrontendKind, Masquerade, OnEmpty, Pool, Scope, ServicePortName
from bpfproxy.model.service import ObjectName, Protocol, Scheduler
from bpfproxy.proxiers.base import Op, Rows
from bpfproxy.proxiers.ebpf import codec, lifecycle, packet
from bpfproxy.proxiers.ebpf.rows import FrontendRow, NodeAddress, NodeAddressRow, SetKey, SetRow
from tests.tables import proxier_over

Layer = Literal["xdp", "tc"]

NODE: Final = {4: "192.0.2.1", 6: "2001:db8:0:2::1"}
"""The node's address towards clients and other nodes."""
CLIENT: Final = {4: "198.51.100.7", 6: "2001:db8:51::7"}
POD: Final = {4: "10.1.1.5", 6: "fd00:1:1::5"}
"""A pod of this node."""
OTHER_POD: Final = {4: "10.1.1.6", 6: "fd00:1:1::6"}
REMOTE_POD: Final = {4: "10.1.2.5", 6: "fd00:1:2::5"}
"""A pod of another node."""
NARROW_POD: Final = {4: "10.1.3.5", 6: "fd00:1:3::5"}
"""A pod of another node; the way there takes 1280 bytes."""
VIP: Final = {4: "10.96.0.10", 6: "fd00:96::10"}
OTHER_VIP: Final = {4: "10.96.0.11", 6: "fd00:96::11"}
CLUSTER: Final = {4: ("10.1.0.0", 16), 6: ("fd00:1::", 32)}
SNAT: Final = (61001, 61064)

_LEFT_TO_TC: Final = b"xrpb"
"""See LEFT_TO_TC in bpf/packet.h."""

_SETUP: Final = """
link set lo up
link add up0 address 02:00:00:00:00:01 type veth peer name up1
link add pod0 address 02:00:00:00:01:01 type veth peer name pod1
link set up0 up
link set up1 up
link set pod0 up
link set pod1 up
addr add 192.0.2.1/24 dev up0
addr add 2001:db8:0:2::1/64 dev up0 nodad
neigh add 192.0.2.254 lladdr 02:00:00:00:00:fe dev up0 nud permanent
neigh add 2001:db8:0:2::fe lladdr 02:00:00:00:00:fe dev up0 nud permanent
neigh add 192.0.2.2 lladdr 02:00:00:00:02:05 dev up0 nud permanent
neigh add 2001:db8:0:2::2 lladdr 02:00:00:00:02:05 dev up0 nud permanent
route add 198.51.100.0/24 via 192.0.2.254
route add 2001:db8:51::/64 via 2001:db8:0:2::fe
route add 10.1.2.0/24 via 192.0.2.2
route add fd00:1:2::/64 via 2001:db8:0:2::2
route add 10.1.3.0/24 via 192.0.2.2 mtu lock 1280
route add fd00:1:3::/64 via 2001:db8:0:2::2 mtu lock 1280
route add 10.1.1.0/24 dev pod0
route add fd00:1:1::/64 dev pod0
neigh add 10.1.1.5 lladdr 02:00:00:00:01:05 dev pod0 nud permanent
neigh add fd00:1:1::5 lladdr 02:00:00:00:01:05 dev pod0 nud permanent
neigh add 10.1.1.6 lladdr 02:00:00:00:01:05 dev pod0 nud permanent
neigh add fd00:1:1::6 lladdr 02:00:00:00:01:05 dev pod0 nud permanent
"""


def _make_node(sandbox: Sandbox) -> str:
    """A network namespace with an uplink (up0), a pod (pod0) and routes; everything forwards."""
    name = sandbox.namespace()
    with netns.inside(name):
        netns.set_sysctl("ipv4.ip_forward", 1)
        netns.set_sysctl("ipv6.conf.all.forwarding", 1)
    subprocess.run(["ip", "-n", name, "-batch", "-"], input=_SETUP.encode(), check=True)
    return name


@dataclass
class Service:
    """A ServicePort with one frontend, ready to be served."""

    frontend: Frontend
    backends: tuple[Backend, ...]
    kind: FrontendKind = FrontendKind.CLUSTER_IP
    masquerade: Masquerade = Masquerade.NEVER
    on_empty: OnEmpty = OnEmpty.REJECT
    affinity: int = 0
    scheduler: Scheduler = Scheduler.MAGLEV
    scoped: bool = False
    pool: Pool = Pool.CLUSTER
    name: str = ""
    source_ranges: Sequence[tuple[str, int]] = field(default=())

    def rows(self) -> list[Op]:
        port = ServicePortName(ObjectName("default", self.name or "web"), "", self.frontend.protocol)
        key = SetKey(port, self.frontend.family, self.pool)
        return [
            Op(key, SetRow(tuple(sorted(self.backends)), (), self.on_empty, self.scheduler)),
            Op(self.frontend, FrontendRow(key, self.kind, self.masquerade, self.affinity, self.scoped)),
        ]


class Datapath:
    """The packet level, loaded once per loader; `clear` makes it empty again."""

    def __init__(self, loader_name: Literal["bcc", "prebuilt"], top: Path, namespace: str, **constants: int) -> None:
        self.namespace = namespace
        self.top = top
        settings = Settings(
            max_frontends=256, max_sets=256, max_backends=512, max_slots=1 << 20, snat_ports=f"{SNAT[0]}-{SNAT[1]}"
        )
        self.sizes = lifecycle.sizes(settings) | packet.sizes(flows=65536, networks=64, backends=512)
        everything = lifecycle.constants(settings) | constants
        spec = loader.LoadSpec(programs=packet.PROGRAMS, constants=everything, sizes=self.sizes, pin_dir=top)
        self.loaded = loader.load(spec, loader_name)
        calls.fill(self.loaded)
        self.maps = self.loaded.maps
        self.reasons = abi.enum_of("reason", "REASON_")
        self.hooks = abi.enum_of("hook", "HOOK_")
        self._reset_proxier()

    def close(self) -> None:
        self.loaded.close()

    # ---- tables --------------------------------------------------------------------------------------------------

    def _reset_proxier(self) -> None:
        self.proxier = proxier_over(self.maps, grace_period=0.0)
        self.applied = dict(self.proxier.read())

    def clear(self) -> None:
        """No services, no flows, all counters zero; the node's own rows as at the start."""
        self.serve()
        self.empty("flows", "tuples", "fragments", "affinities", "networks", "backend_ids", "devices")
        self.clear_counters()
        self.set_node(1)
        up = self.ifindex("up0").to_bytes(4, "little")
        self.maps["devices"].update(up, packet.encode_device(xdp=True))
        for family in (4, 6):
            address, prefix = CLUSTER[family]
            self.add_network(packet.CLUSTER, address, prefix)

    def empty(self, *names: str) -> None:
        """Delete every row of these maps, of both families."""
        for name, map_ in self.maps.items():
            if name.rstrip("46") in names:
                for key, _ in list(map_.items()):
                    map_.delete(bytes(key))

    def clear_counters(self) -> None:
        for name in ("metrics", "frontend_stats", "backend_stats", "allowances"):
            map_ = self.maps[name]
            for index in range(map_.max_entries):
                map_.zero(index)

    def set_node(self, generation: int, *, shared: bool = False) -> None:
        self.maps["node"].update(
            (0).to_bytes(4, "little"),
            packet.encode_node(generation, parse_address(NODE[4]), parse_address(NODE[6]), shared=shared),
        )

    def add_network(self, owner: int, address: str, prefix: int) -> None:
        raw = parse_address(address)
        self.maps[f"networks{4 if len(raw) == 4 else 6}"].update(
            packet.encode_network(owner, raw, prefix), (1).to_bytes(4, "little")
        )

    def apply(self, wanted: Rows) -> None:
        """Make these rows, and no others, the content of the tables."""
        ops = [Op(key, row) for key, row in wanted.items() if self.applied.get(key) != row]
        ops += [Op(key, None) for key in self.applied if key not in wanted]
        failures = self.proxier.apply(sorted(ops, key=self.proxier.phase))
        assert not failures, failures
        self.applied = dict(wanted)

    def serve(self, *services: Service) -> None:
        """Make these services, and no others, the content of the tables."""
        wanted = {op.key: op.row for service in services for op in service.rows()}
        self.apply(wanted | {NodeAddress(parse_address(NODE[family])): NodeAddressRow() for family in (4, 6)})
        for service in services:
            number = self.frontend_id(service.frontend)
            for address, prefix in service.source_ranges:
                self.add_network(number, address, prefix)
            if service.source_ranges:
                self._flag_source_ranges(service.frontend)
            for backend in service.backends:
                family = 4 if len(backend.address) == 4 else 6
                number = self.backend_id(backend)
                self.maps[f"backend_ids{family}"].update(
                    packet.encode_backend_key(backend), number.to_bytes(4, "little")
                )

    def _flag_source_ranges(self, frontend: Frontend) -> None:
        map_ = self.maps[f"frontends{frontend.family}"]
        key = codec.encode_frontend_key(frontend)
        row = bytearray(map_.lookup(key) or b"")
        at = abi.ffi.offsetof("struct frontend", "flags")
        row[at] |= abi.constant("FRONTEND_SOURCE_RANGES")
        map_.update(key, row)

    def frontend_id(self, frontend: Frontend) -> int:
        return self.proxier._frontends.entries[frontend].id

    def backend_id(self, backend: Backend) -> int:
        owners = self.proxier._sets.backends.entries.values()
        return next(entries[backend].id for entries in owners if backend in entries)

    # ---- running -------------------------------------------------------------------------------------------------

    def run(self, program: str, frame: bytes, **how: Any) -> Outcome:
        """A frame through the program `bp_<program>`, inside the node's namespace; `how` as in `run_here`."""
        with self.inside():
            return self.run_here(program, frame, **how)

    def arrive(self, layer: Layer, frame: bytes, *, complete: bool = False) -> Outcome:
        """A frame that comes in by a device with XDP, or with tc alone: what XDP leaves to tc goes on there."""
        if layer == "xdp":
            out = self.run("xdp", frame)
            if not left_to_tc(out):
                return out
            assert out.packet == frame
        return self.run("tc_in", frame, complete=complete)

    def ifindex(self, device: str) -> int:
        """Of a device of the node."""
        with self.inside():
            return socket.if_nametoindex(device)

    def inside(self) -> contextlib.AbstractContextManager[None]:
        """The node's namespace."""
        return netns.inside(self.namespace)

    def run_here(
        self,
        program: str,
        frame: bytes,
        *,
        ifindex: int = 0,
        repeat: int = 1,
        complete: bool = False,
        segment: int = 0,
    ) -> Outcome:
        """As `run`, for a caller who is inside already."""
        found = self.loaded.programs[f"bp_{program}"]
        flags = testrun.CHECKSUM_COMPLETE if complete else 0
        return testrun.run(found.fd, found.type, frame, ifindex=ifindex, repeat=repeat, flags=flags, segment=segment)

    # ---- looking -------------------------------------------------------------------------------------------------

    def counted(self) -> dict[str, int]:
        """{hook.reason: count} of what is not zero, of the packet level."""
        counts: dict[str, int] = {}
        for hook in self.hooks:
            if not hook.name.startswith(("XDP", "TC")):
                continue
            for reason in self.reasons:
                index = hook * abi.constant("REASON_COUNT") + reason
                values = self.maps["metrics"].lookup_per_cpu(index.to_bytes(4, "little"))
                total = sum(int.from_bytes(value, "little") for value in values)
                if total:
                    counts[f"{hook.name}.{reason.name}"] = total
        return counts

    def frontend_stats(self, frontend: Frontend) -> dict[str, list[int]]:
        """Counters of a frontend, summed over the CPUs."""
        key = self.frontend_id(frontend).to_bytes(4, "little")
        rows = [_struct("struct frontend_stats", value) for value in self.maps["frontend_stats"].lookup_per_cpu(key)]
        return {
            name: [sum(values) for values in zip(*(list(getattr(row, name)) for row in rows), strict=True)]
            for name in ("connections", "packets", "bytes")
        }

    def flows(self, name: str) -> dict[bytes, Any]:
        """Rows of flows4, flows6, tuples4 or tuples6 as cffi structs."""
        kind = f"struct flow{name[-1]}"
        return {bytes(key): _struct(kind, bytes(value)) for key, value in self.maps[name].items()}


def left_to_tc(out: Outcome) -> bool:
    """Whether XDP has left a packet to the tc program of its device."""
    return out.metadata == _LEFT_TO_TC


def _struct(kind: str, value: bytes) -> Any:
    result = abi.ffi.new(f"{kind} *")
    abi.ffi.buffer(result)[:] = value
    return result


def backend(address: str, port: int, protocol: Protocol = Protocol.TCP, *, local: bool = True) -> Backend:
    return Backend(parse_address(address), port, protocol, local)


def frontend(address: str, port: int, protocol: Protocol = Protocol.TCP, scope: Scope = Scope.EXTERNAL) -> Frontend:
    return Frontend(parse_address(address), port, protocol, scope)


@contextlib.contextmanager
def datapath(loader_name: Literal["bcc", "prebuilt"], **constants: int) -> Iterator[Datapath]:
    """Load everything on a bpffs of its own; nothing is left at the end."""
    with Sandbox() as sandbox:
        maps = bpffs.mount(sandbox.directory) / "maps"
        maps.mkdir()
        with contextlib.closing(Datapath(loader_name, maps, _make_node(sandbox), **constants)) as loaded:
            yield loaded


__all__ = [
    "CLIENT",
    "NODE",
    "OTHER_VIP",
    "POD",
    "REMOTE_POD",
    "SNAT",
    "VIP",
    "Datapath",
    "Masquerade",
    "Scope",
    "Service",
    "backend",
    "datapath",
    "frontend",
]
