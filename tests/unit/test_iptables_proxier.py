"""The iptables proxier on a node of one family (rule 18); what it does with a kernel is in tests/lab."""

from __future__ import annotations

from pathlib import Path

from bpfproxy.api import plan_manifests
from bpfproxy.config import Settings
from bpfproxy.model.frontend import NodePlan
from bpfproxy.netfilter.sysctl import Sysctls
from bpfproxy.netfilter.writer import RuleWriter
from bpfproxy.proxiers.iptables import lifecycle
from bpfproxy.proxiers.iptables.proxier import IptablesProxier
from bpfproxy.proxiers.iptables.rows import KubeLayout, SysctlKey
from tests.unit.simtables import SimIptables

GOLDEN = Path(__file__).parent / "golden" / "iptables"
EVERYWHERE = NodePlan(localhost_node_ports=(4, 6), node_ports_everywhere=(4, 6))


def test_a_kernel_without_ipv6(tmp_path: Path) -> None:
    writer = RuleWriter({4: SimIptables(4)}, KubeLayout())
    proxier = IptablesProxier(lifecycle.renderer(Settings()), writer, Sysctls(tmp_path / "sysctls.json"))
    rows = dict(proxier.render_node(EVERYWHERE))
    for name in ("udp-ipv6", "cluster-ip"):
        for plan in plan_manifests(Settings(manifests=(GOLDEN / f"{name}.yaml",), node_name="n1")).services.values():
            rows.update(proxier.render(plan))
    assert {key.family for key in rows if not isinstance(key, SysctlKey)} == {4}
    assert any(isinstance(key, SysctlKey) for key in rows)
