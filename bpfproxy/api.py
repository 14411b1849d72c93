"""What a person can do with bpfproxy from Python; each command of the command line is one of these.

    >>> from bpfproxy import Settings, plan_manifests
    >>> plan = plan_manifests(Settings(manifests=("examples",), node_name="node-a"))

Functions that only compute need neither a kernel nor root. All raise the errors of `bpfproxy.errors`.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from bpfproxy import status
from bpfproxy.config import Settings
from bpfproxy.errors import NotRunningError, PermissionsError
from bpfproxy.lock import StateLock, holder
from bpfproxy.model.event import Object, Update
from bpfproxy.model.finding import Finding
from bpfproxy.model.flow import ALL_FLOWS, Flow, FlowFilter
from bpfproxy.model.frontend import Frontend, FrontendSpec, NodePlan, ServicePlan
from bpfproxy.model.service import ObjectName
from bpfproxy.plan import Clash, PlanIndex, device_policy, node_config, plan_devices, plan_node, plan_service
from bpfproxy.proxiers.base import Key, Proxier, Renderer, Row
from bpfproxy.proxiers.modes import INSPECT, MODES, lifecycle
from bpfproxy.sources.files import load_manifests
from bpfproxy.status import AgentStatus
from bpfproxy.store import Store

if TYPE_CHECKING:
    import signal

    from bpfproxy.engine import Engine
    from bpfproxy.proxiers.ebpf.conntrack import Conntrack
    from bpfproxy.proxiers.ebpf.flowcodec import Names
    from bpfproxy.proxiers.ebpf.view import View


class Plan(Struct, frozen=True):
    """What a node should do for some objects."""

    node: NodePlan
    services: Mapping[ObjectName, ServicePlan]
    """Those that have something to serve, without the frontends that another Service won."""
    clashes: tuple[Clash, ...]

    def frontends(self) -> dict[Frontend, FrontendSpec]:
        """All frontends of all Services."""
        return {frontend: spec for plan in self.services.values() for frontend, spec in plan.frontends.items()}


class RenderedRow(Struct, frozen=True):
    """One row of a proxier, with its text for people."""

    table: str
    key: Key
    row: Row
    key_text: str
    row_text: str


def plan_objects(objects: Iterable[Object], settings: Settings) -> Plan:
    """The plan of the node `settings.node` for `objects`. The node's addresses and zone are those of its Node object,
    if it is among them."""
    store = Store()
    store.update(Update(objects=tuple(objects), complete=True))
    node = store.node(settings.node)
    config = node_config(settings, settings.node, node.addresses if node else (), node)
    index = PlanIndex()
    index.update(
        {name: plan_service(store.service(name), store.slices(name), config) for name in store.take().services}
    )
    return Plan(plan_node(config), index.plans, index.clashes)


def plan_manifests(settings: Settings) -> Plan:
    """The plan for the manifests in `settings.manifests`. Raises InputError for the first that cannot be accepted."""
    return plan_objects(load_manifests(settings.manifests), settings)


def renderer(settings: Settings) -> Renderer:
    """The pure half of the proxier `settings.proxy_mode`."""
    return lifecycle(settings.proxy_mode).renderer(settings)


def render_plan(plan: Plan, settings: Settings) -> list[RenderedRow]:
    """The rows of the proxier `settings.proxy_mode` for `plan`, in the order of their tables."""
    proxier = renderer(settings)
    found: dict[Key, Row] = dict(proxier.render_node(plan.node))
    for name in sorted(plan.services):
        found.update(proxier.render(plan.services[name]))
    rows = []
    for key, row in found.items():
        table, key_text, row_text = proxier.describe(key, row)
        rows.append(RenderedRow(table, key, row, key_text, row_text))
    return sorted(rows, key=lambda row: row.table)


async def serve(settings: Settings) -> signal.Signals | None:
    """Run the agent until SIGTERM or SIGINT; returns the signal. The datapath stays in place."""
    from bpfproxy.agent import Agent

    return await Agent(settings).run()


def run(settings: Settings) -> signal.Signals | None:
    """`serve` in an event loop of its own."""
    import asyncio

    return asyncio.run(serve(settings))


@contextlib.contextmanager
def open_engine(settings: Settings, wrap: Callable[[Proxier], Proxier] = lambda proxier: proxier) -> Iterator[Engine]:
    """The engine of a node without an agent, for a program that is its own source: give it objects by `update`, then
    `sync`. Nothing is attached before the first sync; the datapath stays in place afterwards.

    What `wrap` makes of a proxier is what the engine sees. Raises AlreadyRunningError, PermissionsError,
    UnsupportedError, DatapathError.
    """
    from bpfproxy.agent.parts import NodeParts
    from bpfproxy.engine import Engine

    parts = NodeParts(settings)
    with parts.lock(), contextlib.ExitStack() as stack:
        mode = settings.proxy_mode
        proxier = parts.open_proxier(mode)
        stack.callback(proxier.close)
        config = node_config(settings, settings.node, parts.node_addresses(), state=parts.network())
        engine = Engine({mode: wrap(proxier)}, mode, config)
        engine.start()
        yield engine


def check(settings: Settings) -> list[Finding]:
    """What this kernel and machine offer to an agent with `settings`, what would be used, and what follows."""
    from bpfproxy.sources.devices import network_state

    network = network_state().network
    return lifecycle(settings.proxy_mode).check(settings, plan_devices(device_policy(settings), network))


def open_view(state_dir: Path) -> View:
    """A look at the datapath of a node, whether its agent runs or not. It holds descriptors: use it as a context
    manager, or close it. Raises NotRunningError, PermissionsError."""
    from bpfproxy.proxiers.ebpf import lifecycle as ebpf

    with _readable(state_dir):
        return ebpf.open_view(state_dir)


def attached_programs(state_dir: Path) -> dict[tuple[str, int], int]:
    """The packet level's programs at the devices of the calling thread's network namespace: (`xdp`, `tc_in` or
    `tc_out`, index of the device) → the kernel's id of the program. Raises NotRunningError, PermissionsError."""
    from bpfproxy.proxiers.ebpf import lifecycle

    with _readable(state_dir):
        return {(hook.value, index): program for (hook, index), program in lifecycle.attached(state_dir).items()}


def list_flows(state_dir: Path, wanted: FlowFilter = ALL_FLOWS) -> list[Flow]:
    """The flows that the packet level of a node knows, whether its agent runs or not; in no order. Raises
    NotRunningError, PermissionsError."""
    with _conntrack(state_dir) as (conntrack, names):
        return list(conntrack.read(names, wanted))


def flush_flows(state_dir: Path, wanted: FlowFilter = ALL_FLOWS) -> int:
    """Make a node forget flows; returns how many. Their next packets get new ones, where they may (a TCP packet that
    opens no connection goes to the backend that Maglev names, or passes untranslated). Raises NotRunningError,
    PermissionsError."""
    with _conntrack(state_dir) as (conntrack, names):
        return conntrack.flush(names, wanted)


@contextlib.contextmanager
def _conntrack(state_dir: Path) -> Iterator[tuple[Conntrack, Names]]:
    from bpfproxy.proxiers.ebpf import lifecycle as ebpf

    agent = status.read(state_dir) if state_dir.is_dir() else None
    with _readable(state_dir), ebpf.open_conntrack(state_dir, agent.settings if agent else {}) as found:
        yield found


@contextlib.contextmanager
def _readable(state_dir: Path) -> Iterator[None]:
    try:
        yield
    except PermissionError as error:
        raise PermissionsError(
            f"{state_dir} cannot be read: run as root, or grant CAP_BPF and CAP_NET_ADMIN"
        ) from error
    except NotRunningError as error:
        if others := other_modes(state_dir):
            raise NotRunningError(f"no eBPF datapath under {state_dir}; {'; '.join(others)}") from error
        raise


def other_modes(state_dir: Path) -> list[str]:
    """A line for each mode but `ebpf` that has something in the kernel: there is no view of it, and what to use
    instead."""
    present = [mode for mode in MODES if mode in INSPECT and lifecycle(mode).present(state_dir)]
    return [f"mode {mode} has no such view: {INSPECT[mode]} show what it does" for mode in present]


def read_status(state_dir: Path) -> AgentStatus | None:
    """What the agent of a state directory says of itself, its pid None if it does not run any more; None if there was
    none."""
    found = status.read(state_dir)
    if found is not None and holder(state_dir) is None:
        found.pid = None  # it was killed
    return found


def cleanup(state_dir: Path) -> list[str]:
    """Remove every trace of all proxiers; returns what was removed, empty if there was nothing. Raises
    AlreadyRunningError while an agent runs."""
    if not state_dir.is_dir():
        return []
    for mode in MODES:
        lifecycle(mode).require()
    removed = []
    with StateLock(state_dir) as lock:
        for mode in MODES:
            removed += lifecycle(mode).cleanup(state_dir)
        for path in sorted(state_dir.iterdir()):
            if path == lock.path:
                continue
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
            removed.append(str(path))
        lock.release(remove=True)
    state_dir.rmdir()
    return removed
