"""Runs cases on one proxier after the other, each in a lab of its own."""

from __future__ import annotations

import contextlib
import platform
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, get_args

import msgspec

from bpfproxy.lab import cases, manifests, observe
from bpfproxy.lab.cases import Agents, Case, Probe
from bpfproxy.lab.divergences import Divergence
from bpfproxy.lab.lab import Lab
from bpfproxy.lab.layout import NODES
from bpfproxy.lab.node import AgentError, LoaderName, packet_level
from bpfproxy.lab.oracle import Expected, KubeProxyMode, Mode, OurMode
from bpfproxy.lab.place import Outcome
from bpfproxy.parity import kube_proxy, shares, stage
from bpfproxy.parity.kube_proxy import Binary
from bpfproxy.parity.report import Cell, ModeRun, Seen
from bpfproxy.parity.stage import Scenario

MODES: Final[tuple[OurMode, ...]] = get_args(OurMode)

_EBPF: Final = {"node1": "tc", "node2": "xdp"}
"""How the nodes of a lab serve clients that no hook sees."""

_USERSPACE: Final = ("--max-connections", "65536", "--conntrack-udp-stream", "30")
"""All cases together open more UDP sockets in two minutes than a node carries sessions, unless it is told to."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Ours:
    """A column: our agents."""

    mode: OurMode
    loader: LoaderName
    version: str = ""

    @property
    def xdp(self) -> list[str]:
        """Nodes whose uplinks have to be ready for XDP."""
        return [node for node, way in _EBPF.items() if way == "xdp"] if self.mode == "ebpf" else []

    @contextlib.contextmanager
    def serving(self, lab: Lab, agents: Agents, directory: Path) -> Iterator[None]:
        """Agents on all nodes of a lab, ready. Raises AgentError."""
        for node in NODES:
            own = packet_level(_EBPF[node]) if self.mode == "ebpf" else ()
            own = _USERSPACE if self.mode == "userspace" else own
            options = ("--proxy-mode", self.mode, *own, *agents.options())
            how = {"loader": self.loader, "cluster_cidrs": agents.cluster_cidrs, "options": options}
            lab.agent(node, manifests=directory, **how).launch()
        for agent in lab.agents.values():
            agent.wait_ready()
        yield


@dataclass(frozen=True)
class KubeProxy:
    """A column: the real kube-proxy."""

    binary: Binary

    @property
    def mode(self) -> KubeProxyMode:
        """Its name."""
        return self.binary.column

    @property
    def version(self) -> str:
        """Its own."""
        return self.binary.version

    xdp: tuple[str, ...] = ()

    def serving(self, lab: Lab, agents: Agents, directory: Path) -> AbstractContextManager[None]:
        """kube-proxy on all nodes of a lab, ready. Raises AgentError."""
        return kube_proxy.on_all_nodes(lab, self.binary, agents, directory)


Column = Ours | KubeProxy


def run_column(column: Column, wanted: Sequence[Case | Scenario], say: Say) -> tuple[ModeRun, list[Cell]]:
    """The cells of one column. A mode that this kernel or machine lacks is missing, with the reason."""
    kernel = platform.release()
    cells: list[Cell] = []
    try:
        for agents in dict.fromkeys(one.agents for one in wanted):
            cells += _run_lab(column, agents, [one for one in wanted if one.agents == agents], say)
    except AgentError as error:
        return ModeRun(column.mode, kernel, missing=_reason(error), version=column.version), []
    return ModeRun(column.mode, kernel, version=column.version), cells


def _run_lab(column: Column, agents: Agents, wanted: Sequence[Case | Scenario], say: Say) -> Iterator[Cell]:
    mode = column.mode
    with Lab(xdp=column.xdp, unhooked=True) as lab:
        say(f"{mode}: lab {lab.lab_id}")
        directory = lab.directory / "manifests"
        manifests.write(directory, "nodes", manifests.nodes())
        for one in wanted:
            if isinstance(one, Case):
                manifests.write(directory, one.name, manifests.objects(one))
        cells = []
        with column.serving(lab, agents, directory):
            for one in wanted:
                begin = time.monotonic()
                cell = _case(lab, mode, one) if isinstance(one, Case) else stage.play(lab, mode, one)
                cells.append(_timed(cell, time.monotonic() - begin))
                say(f"{mode}: {one.name}: {cells[-1].verdict}")
    yield from cells


def _case(lab: Lab, mode: Mode, case: Case) -> Cell:
    differences: list[str] = []
    divergences: set[Divergence] = set()
    seen: list[Seen] = []
    for family in (4, 6):
        probes = [*cases.probes(case, family), *cases.outside_probes(case, family)]
        results = observe.send_all(lab.places, probes, mode)
        for probe, expected, outcomes in results:
            found = observe.differences(probe, expected, outcomes)
            differences += [f"{probe}: {line}" for line in found]
            divergences |= expected.divergences
            seen.append(_seen(probe, outcomes))
        differences += _unfair(case, results)
    return Cell(case.name, mode, len(seen), tuple(differences), tuple(sorted(divergences)), seen=tuple(seen))


def _seen(probe: Probe, outcomes: Sequence[Outcome]) -> Seen:
    replies = [one.reply for one in outcomes if one.reply]
    clients: defaultdict[str, set[str]] = defaultdict(set)
    for reply in replies:
        clients[reply.place].add(reply.peer[0])
    return Seen(
        client=probe.client,
        via=probe.via,
        to=probe.flow().to,
        talk=probe.talk,
        outcomes=Counter(one.reply.place if one.reply else _failure(one) for one in outcomes),
        slowest=round(max(one.seconds for one in outcomes), 6),
        clients={place: sorted(addresses) for place, addresses in clients.items()},
        peers=sorted({peer[0] for one in outcomes if (peer := one.peer or one.about)}),
    )


def _failure(outcome: Outcome) -> str:
    return f"{outcome.error} by {outcome.by}" if outcome.by else outcome.error


def _unfair(case: Case, results: Iterable[tuple[Probe, Expected, list[Outcome]]]) -> Iterator[str]:
    """Shares are looked at over all traffic of a case that could have gone to the same places."""
    answers: defaultdict[frozenset[str], Counter[str]] = defaultdict(Counter)
    for _, expected, outcomes in results:
        if expected.answer == "answered" and not expected.sticky:
            # A UDP socket stays with its backend: its answers count once.
            firsts = {(one.reply.peer, one.reply.place) for one in outcomes if one.reply}
            answers[expected.places].update(place for _, place in firsts)
    for places, counts in answers.items():
        if line := shares.unfair(counts, places):
            yield f"{case.name}: {line}"


def _timed(cell: Cell, seconds: float) -> Cell:
    return msgspec.structs.replace(cell, seconds=round(seconds, 3))


def _reason(error: AgentError) -> str:
    """What the agent said last: why it cannot run here."""
    return str(error).strip().splitlines()[-1]
