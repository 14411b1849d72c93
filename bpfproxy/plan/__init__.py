"""What the node should do, decided from the objects alone: no clock, no I/O, no kernel.

`plan_service` and `plan_node` are pure; `PlanIndex` settles which Service owns a frontend that several claim.
"""

from __future__ import annotations

from bpfproxy.plan.devices import device_policy, plan_devices
from bpfproxy.plan.index import Clash, IndexDelta, PlanIndex
from bpfproxy.plan.node import NodeConfig, node_config, plan_node
from bpfproxy.plan.service import plan_service

__all__ = [
    "Clash",
    "IndexDelta",
    "NodeConfig",
    "PlanIndex",
    "device_policy",
    "node_config",
    "plan_devices",
    "plan_node",
    "plan_service",
]
