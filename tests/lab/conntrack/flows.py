"""Who talks to whom, and what conntrack says of it."""

from __future__ import annotations

from bpfproxy.model.address import format_endpoint, parse_address
from bpfproxy.model.flow import ALL_FLOWS, Flow, FlowFilter
from bpfproxy.model.frontend import Backend, Frontend, FrontendKind, FrontendSpec, Pool, ServicePlan, ServicePortName
from bpfproxy.model.service import ObjectName, Protocol
from bpfproxy.proxiers.base import Key, Op, Row, Tended
from bpfproxy.proxiers.ebpf import collector
from bpfproxy.proxiers.ebpf.collector import Collector
from bpfproxy.proxiers.ebpf.conntrack import Conntrack
from bpfproxy.proxiers.ebpf.flowcodec import Names
from bpfproxy.proxiers.ebpf.proxier import EbpfProxier
from bpfproxy.proxiers.ebpf.snapshot import Maps
from tests.lab.conntrack.flow_rows import ANSWERED, SEEN, End
from tests.tables import proxier_over

TCP, UDP = Protocol.TCP, Protocol.UDP
OPEN, SILENT = (SEEN | ANSWERED, SEEN | ANSWERED), (SEEN, 0)
WEB: End = ("10.96.0.1", 80)
DNS: End = ("10.96.0.2", 53)
POD: End = ("10.244.1.1", 8080)
POD2: End = ("10.244.1.2", 8080)
CLIENT: End = ("192.0.2.7", 40000)
NODE: End = ("192.0.2.1", 61001)
WEB6: End = ("fd00:96::1", 80)
POD6: End = ("fd00:244::1", 8080)
CLIENT6: End = ("2001:db8::7", 40000)
NODE6: End = ("2001:db8::1", 61001)
NO_NAMES = Names({})
MAPS = ("flows4", "tuples4", "flows6", "tuples6")


def sweep(found: Collector) -> Tended:
    """Until the sweep is over; all runs in one."""
    expired = 0
    while True:
        done = found.run()
        expired += done.expired_flows
        if done.delay != collector.PAUSE:
            return Tended(done.delay, expired, done.nearly_full)


def flows(conntrack: Conntrack, wanted: FlowFilter = ALL_FLOWS) -> list[Flow]:
    return sorted(conntrack.read(NO_NAMES, wanted), key=lambda flow: (flow.client, flow.client_port, flow.vip))


def backends(conntrack: Conntrack) -> list[str]:
    return [format_endpoint(flow.backend, flow.backend_port) for flow in flows(conntrack)]


def agent_applies(maps: Maps, *plans: ServicePlan) -> tuple[EbpfProxier, dict[Key, Row]]:
    """Service tables as an agent writes them."""
    proxier = proxier_over(maps)
    rows: dict[Key, Row] = {}
    for plan in plans:
        rows.update(proxier.render(plan))
    assert proxier.apply(sorted((Op(key, row) for key, row in rows.items()), key=proxier.phase)) == []
    return proxier, rows


def service(name: str, vip: End, protocol: Protocol, *pods: End) -> ServicePlan:
    spec = FrontendSpec(
        ServicePortName(ObjectName("shop", name), "main", protocol),
        FrontendKind.CLUSTER_IP,
        Pool.CLUSTER,
        tuple(Backend(parse_address(address), port, protocol) for address, port in pods),
    )
    return ServicePlan(ObjectName("shop", name), {Frontend(parse_address(vip[0]), vip[1], protocol): spec})
