"""From settings to rules in force, and back to nothing.

    STATE/iptables.json          which variants of iptables this agent has written with
    STATE/iptables-sysctls.json  kernel parameters as they were before

kube-proxy's chains have the same names. A node's default proxier takes over what kube-proxy has left, without a gap; a
proxier that a single Service asks for does not touch it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from ipaddress import ip_network
from pathlib import Path
from typing import Final, cast

from bpfproxy.config import Settings
from bpfproxy.errors import BpfproxyError, DatapathError, UnsupportedError
from bpfproxy.events import emit
from bpfproxy.model.address import Family
from bpfproxy.model.device import DevicePlan
from bpfproxy.model.finding import Finding
from bpfproxy.netfilter import command, conntrack, privileges, sysctl
from bpfproxy.netfilter.command import Iptables, Variant
from bpfproxy.netfilter.sysctl import Sysctls
from bpfproxy.netfilter.writer import RuleWriter
from bpfproxy.proxiers.base import Op
from bpfproxy.proxiers.iptables import names, rows
from bpfproxy.proxiers.iptables.node import NodeRules
from bpfproxy.proxiers.iptables.proxier import IptablesProxier
from bpfproxy.proxiers.iptables.render import IptablesRenderer
from bpfproxy.proxiers.iptables.rows import KubeLayout

log = logging.getLogger(__name__)

_STATE: Final = "iptables.json"
_SYSCTLS: Final = "iptables-sysctls.json"


def renderer(settings: Settings) -> IptablesRenderer:
    """The pure half, for which no kernel is needed."""
    networks = [ip_network(part.strip(), strict=False) for text in settings.cluster_cidr for part in text.split(",")]
    node = NodeRules(1 << settings.masquerade_bit, settings.masquerade_ports(), settings.localhost_nodeports)
    return IptablesRenderer(networks, node)


def require() -> None:
    """Raises PermissionsError that names the capabilities that this process lacks."""
    privileges.require()


def open_proxier(settings: Settings) -> IptablesProxier:
    """A proxier over this node's rules; the caller holds the lock of the state directory. Raises PermissionsError,
    UnsupportedError, DatapathError."""
    require()
    state = _State(settings.state_dir)
    former = state.variants()
    variant = _variant(settings, former)
    tools = {family: Iptables(family, variant) for family in command.families()}
    if not former and settings.proxy_mode != IptablesProxier.name and (chain := _occupied(tools)):
        raise UnsupportedError(f"{chain} belongs to another proxy of this node: expected it to be cleaned up first")
    state.remember([variant, *(one for one in former if one != variant)])

    def took_over() -> None:
        others = [one for one in former if one != variant]
        for other in others:
            removed = _remove_rules(other)
            emit(log, logging.INFO, "variant_left", variant=other, removed=len(removed))
        state.remember([variant])

    sysctls = Sysctls(settings.state_dir / _SYSCTLS)
    return IptablesProxier(renderer(settings), RuleWriter(tools, KubeLayout()), sysctls, took_over)


def check(settings: Settings, devices: Sequence[DevicePlan]) -> list[Finding]:
    """What this kernel and machine offer, what would be used, and why."""
    found = [privileges.check("rules cannot be written")]
    installed = ", ".join(command.available()) or "none"
    try:
        chosen = _variant(settings, _State(settings.state_dir).variants())
        found.append(Finding("iptables", True, f"{chosen}; installed: {installed}", "", required=True))
    except BpfproxyError as error:
        found.append(Finding("iptables", False, str(error), "rules cannot be written", required=True))
    problem = conntrack.problem()
    consequence = "UDP flows to endpoints that are gone go on until they time out"
    found.append(Finding("conntrack", not problem, problem or "flows can be listed and ended", consequence))
    return [*found, *_parameters(settings)]


def _parameters(settings: Settings) -> Iterable[Finding]:
    wanted = [
        ("net/ipv4/ip_forward", "1", "clients outside this node reach no pods"),
        ("net/ipv6/conf/all/forwarding", "1", "clients outside this node reach no pods by IPv6"),
        ("net/bridge/bridge-nf-call-iptables", "1", "where pods are on a bridge, answers among them go past the rules"),
    ]
    for name, value, consequence in wanted:
        found = sysctl.get(name)
        if found is not None or "bridge" not in name:
            detail = "this kernel has none" if found is None else found
            yield Finding(name.replace("/", "."), found == value, detail, consequence)
    if settings.localhost_nodeports:
        found = sysctl.get("net/ipv4/conf/all/route_localnet")
        detail = "this kernel has none" if found is None else f"{found}; set to 1 and put back by cleanup"
        yield Finding("net.ipv4.conf.all.route_localnet", found is not None, detail, "no NodePorts on 127.0.0.1")


def present(state_dir: Path) -> bool:
    """Whether an agent with this state directory has written rules that nobody has removed."""
    return (state_dir / _STATE).exists() or (state_dir / _SYSCTLS).exists()


def cleanup(state_dir: Path) -> list[str]:
    """Remove all that an agent with this state directory has written; returns what was removed. The caller holds the
    lock. Raises DatapathError if something could not be removed; it is tried again the next time."""
    state = _State(state_dir)
    removed = [f"sysctl {name.replace('/', '.')}" for name in Sysctls(state_dir / _SYSCTLS).restore_all()]
    for variant in state.variants():
        removed += _remove_rules(variant)
    state.remember([])
    return removed


def _remove_rules(variant: Variant) -> list[str]:
    """All rules and chains that are ours by name, a text each."""
    tools = {family: Iptables(family, variant) for family in command.families()}
    writer = RuleWriter(tools, KubeLayout())
    found = writer.read()
    if any(names.KUBELET_CANARY in one.save(["filter"]).get("filter", {}) for one in tools.values()):
        # The kubelet keeps this chain, too, and wants it after us.
        found = {key: row for key, row in found.items() if names.FIREWALL not in str(key)}
    ops = sorted((Op(key, None) for key in found), key=rows.phase)
    refused = writer.apply([(op.key, None) for op in ops])
    if refused:
        key, reason = refused[0]
        raise DatapathError(f"{key} and {len(refused) - 1} more could not be removed: {reason}")
    return [f"iptables-{variant} {op.key}" for op in ops]


def _variant(settings: Settings, former: Sequence[Variant]) -> Variant:
    """With `auto` an agent stays with the one that it has used before."""
    if settings.iptables_variant == "auto" and former and former[0] in command.available():
        return former[0]
    return command.choose(settings.iptables_variant)


def _occupied(tools: dict[Family, Iptables]) -> str | None:
    """A chain of kube-proxy's that is there."""
    for one in tools.values():
        for table, chains in one.save(["nat"]).items():
            if names.SERVICES in chains:
                return f"IPv{one.family} {table} {names.SERVICES}"
    return None


class _State:
    """The variants that were used, the present one first."""

    def __init__(self, state_dir: Path) -> None:
        self._file = state_dir / _STATE

    def variants(self) -> list[Variant]:
        try:
            return cast(list[Variant], json.loads(self._file.read_text()))
        except FileNotFoundError:
            return []

    def remember(self, variants: Sequence[Variant]) -> None:
        if not variants:
            self._file.unlink(missing_ok=True)
            return
        self._file.parent.mkdir(parents=True, exist_ok=True)
        draft = self._file.with_suffix(".draft")
        draft.write_text(json.dumps(variants))
        draft.replace(self._file)
