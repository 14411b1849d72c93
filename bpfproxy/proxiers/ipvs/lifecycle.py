"""From settings to virtual servers in force, and back to nothing.

    STATE/ipvs/variant       which iptables wrote the rules
    STATE/ipvs/sysctls.json  kernel parameters as they were before

The names of the device, the ipsets and some chains are kube-proxy's, too. Where STATE/ipvs is missing, what bears them
is not ours.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final, cast

from pyroute2.netlink.exceptions import NetlinkError

from bpfproxy.config import Settings
from bpfproxy.errors import BpfproxyError, DatapathError, UnsupportedError
from bpfproxy.model.address import Family, Network
from bpfproxy.model.device import VIP_DEVICE, DevicePlan
from bpfproxy.model.finding import Finding
from bpfproxy.netfilter import command, privileges
from bpfproxy.netfilter.command import Iptables, Variant
from bpfproxy.netfilter.ipset import IpSets
from bpfproxy.netfilter.sysctl import Sysctls
from bpfproxy.netfilter.writer import RuleWriter
from bpfproxy.proxiers.base import Op
from bpfproxy.proxiers.ipvs import sets
from bpfproxy.proxiers.ipvs.addresses import VipDevice
from bpfproxy.proxiers.ipvs.chains import Layout
from bpfproxy.proxiers.ipvs.entries import EntryTable
from bpfproxy.proxiers.ipvs.proxier import IpvsProxier
from bpfproxy.proxiers.ipvs.render import FAMILIES, IpvsRenderer
from bpfproxy.proxiers.ipvs.servers import Servers
from bpfproxy.proxiers.ipvs.table import ServerTable


def renderer(settings: Settings) -> IpvsRenderer:
    """The pure half, for which no kernel is needed."""
    return IpvsRenderer(
        settings.ipvs_scheduler,
        mark=1 << settings.masquerade_bit,
        ports=settings.masquerade_ports(),
        masquerade_all=settings.masquerade_all,
        strict_arp=settings.ipvs_strict_arp,
    )


def require() -> None:
    """Raises PermissionsError that names the capabilities that this process lacks."""
    privileges.require()


def open_proxier(settings: Settings) -> IpvsProxier:
    """A proxier over this node's IPVS; the caller holds the lock of the state directory. Raises PermissionsError,
    UnsupportedError, DatapathError."""
    require()
    state = settings.state_dir / _STATE
    if not state.exists():
        _has_ipvs()  # a note of what can never be opened would be in the way of every later agent
        variant = command.choose(settings.iptables_variant)
        _refuse_others(variant)
        state.mkdir(parents=True)
        (state / _VARIANT).write_text(variant)
    return _open(state, renderer(settings), settings.ipvs_exclude_networks())


def check(settings: Settings, devices: Sequence[DevicePlan]) -> list[Finding]:
    """What this kernel and machine offer, what would be used, and why."""
    return [
        privileges.check("nothing can be written"),
        _asked("ipvs", _has_ipvs, "there are no virtual servers"),
        _asked("ipset", lambda: IpSets().close(), "there is nothing that rules can look addresses up in"),
        _asked("iptables", lambda: command.choose(settings.iptables_variant), "rules cannot be written"),
    ]


def present(state_dir: Path) -> bool:
    """Whether an agent with this state directory has left anything."""
    return (state_dir / _STATE).exists()


def cleanup(state_dir: Path) -> list[str]:
    """Remove all that an agent with this state directory has made; returns what was removed. The caller holds the
    lock. Raises DatapathError if something could not be removed; it is tried again the next time."""
    state = state_dir / _STATE
    if not state.exists():
        return []
    rendering = IpvsRenderer()
    proxier = _open(state, rendering, (), graceful=False)
    try:
        rows = proxier.read()
        ops = sorted((Op(key, None) for key in rows), key=proxier.phase)
        failures = proxier.apply(ops)
    finally:
        proxier.close()
    if failures:
        where = " ".join(rendering.describe(failures[0].op.key, rows[failures[0].op.key])[:2])
        raise DatapathError(f"{where} and {len(failures) - 1} more could not be removed: {failures[0].reason}")
    shutil.rmtree(state)
    return [" ".join(rendering.describe(op.key, rows[op.key])[:2]) for op in ops]


_STATE: Final = "ipvs"
_VARIANT: Final = "variant"
_SYSCTLS: Final = "sysctls.json"


def _open(state: Path, rendering: IpvsRenderer, spared: tuple[Network, ...], *, graceful: bool = True) -> IpvsProxier:
    variant = cast(Variant, (state / _VARIANT).read_text())
    with ExitStack() as stack:
        servers = Servers()
        stack.callback(servers.close)
        device = VipDevice()
        stack.callback(device.close)
        ipsets = IpSets()
        stack.callback(ipsets.close)
        entries = EntryTable(ipsets)
        return IpvsProxier(
            rendering,
            ServerTable(servers, device, entries, spared, graceful=graceful),
            entries,
            device,
            ipsets,
            RuleWriter(_tools(variant), Layout()),
            Sysctls(state / _SYSCTLS),
            stack.pop_all().close,
        )
    raise AssertionError  # ExitStack swallows nothing


def _tools(variant: Variant) -> dict[Family, Iptables]:
    return {family: Iptables(family, variant) for family in FAMILIES}


def _refuse_others(variant: Variant) -> None:
    """Raises UnsupportedError if another program, such as kube-proxy, has put something in our place."""
    device = VipDevice()
    ipsets = IpSets()
    try:
        ours = {sets.full_name(family, name) for family in FAMILIES for name in sets.SETS}
        found = [VIP_DEVICE] if device.exists() else []
        found += sorted(ours.intersection(ipsets.all()))
        found += [str(key) for key in RuleWriter(_tools(variant), Layout()).read()]
    finally:
        device.close()
        ipsets.close()
    if found:
        raise UnsupportedError(
            f"{found[0]} belongs to another proxy of this node: expected it to be cleaned up first"
            " (`kube-proxy --cleanup`)"
        )


def _has_ipvs() -> None:
    Servers().close()


def _asked(name: str, question: Callable[[], object], consequence: str) -> Finding:
    try:
        answer = question()
        return Finding(name, True, answer if isinstance(answer, str) else "", consequence, required=True)
    except (BpfproxyError, OSError, NetlinkError) as error:
        return Finding(name, False, str(error), consequence, required=True)
