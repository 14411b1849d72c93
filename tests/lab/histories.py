"""A proxier through a random history, on a real kernel: Services come and change, the agent starts again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from bpfproxy.engine import Engine
from bpfproxy.model.event import Update
from bpfproxy.model.frontend import NodePlan
from bpfproxy.plan import NodeConfig
from bpfproxy.proxiers.base import Key, Proxier, Renderer, Row
from tests.unit import strategies

_STEPS = ("service", "slice", "sync", "sync", "restart", "resync")


def changes_and_restarts(
    mode: str, open_proxier: Callable[[], Proxier], renderer: Renderer, node_plan: NodePlan, data: st.DataObject
) -> None:
    """After each sync the kernel has refused nothing. At the end it holds the rows of the Services that there are, and
    a restart has nothing to do. Every start is with a proxier that has just been opened."""
    node = NodeConfig("n1", cluster_cidrs=tuple(strategies.CIDRS), addresses=node_plan.node_port_addresses)
    objects: list[Update] = []

    def start() -> Engine:
        engine = Engine({mode: open_proxier()}, mode, node)
        engine.start()
        for update in objects:
            engine.update(update)
        engine.update(Update(complete=True))
        return engine

    engine = start()
    assert not engine.sync().failures
    for step in [*data.draw(st.lists(st.sampled_from(_STEPS), max_size=25)), "sync"]:
        if step in ("service", "slice"):
            kind: st.SearchStrategy[Any] = strategies.services() if step == "service" else strategies.slices()
            objects.append(Update(objects=(data.draw(kind),)))
            engine.update(objects[-1])
            continue
        if step == "restart":
            engine = start()
        report = engine.resync() if step == "resync" else engine.sync()
        assert report.failures == ()
    wanted: dict[Key, Row] = dict(renderer.render_node(engine.node_plan))
    for name in strategies.SERVICES:
        if plan := engine.plan_of(name):
            wanted |= renderer.render(plan)
    assert open_proxier().read() == wanted
    assert start().sync().ops == 0
