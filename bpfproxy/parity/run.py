"""Runs cases on one proxier after the other, each in a lab of its own."""

from __future__ import annotations

import platform
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, get_args

import msgspec

from bpfproxy.lab import cases, manifests, observe
from bpfproxy.lab.cases import Agents, Case, Probe
from bpfproxy.lab.divergences import Divergence
from bpfproxy.lab.lab import Lab
from bpfproxy.lab.layout import NODES
from bpfproxy.lab.node import AgentError, LoaderName, packet_level
from bpfproxy.lab.oracle import Expected, Mode
from bpfproxy.lab.place import Outcome
from bpfproxy.parity import shares, stage
from bpfproxy.parity.report import Cell, ModeRun, Seen
from bpfproxy.parity.stage import Scenario

MODES: Final[tuple[Mode, ...]] = get_args(Mode)

_EBPF: Final = {"node1": "tc", "node2": "xdp"}
"""How the nodes of a lab serve clients that no hook sees."""

Say = Callable[[str], None]


def run_mode(
    mode: Mode, wanted: Sequence[Case | Scenario], *, loader: LoaderName, say: Say
) -> tuple[ModeRun, list[Cell]]:
    """The cells of one mode. A mode that this kernel or machine lacks is missing, with the reason."""
    kernel = platform.release()
    cells: list[Cell] = []
    try:
        for agents in dict.fromkeys(one.agents for one in wanted):
            cells += _run_lab(mode, agents, [one for one in wanted if one.agents == agents], loader, say)
    except AgentError as error:
        return ModeRun(mode, kernel, missing=_reason(error)), []
    return ModeRun(mode, kernel), cells


def _run_lab(
    mode: Mode, agents: Agents, wanted: Sequence[Case | Scenario], loader: LoaderName, say: Say
) -> Iterator[Cell]:
    xdp = [node for node, way in _EBPF.items() if way == "xdp"] if mode == "ebpf" else []
    with Lab(xdp=xdp, unhooked=True) as lab:
        say(f"{mode}: lab {lab.lab_id}")
        directory = lab.directory / "manifests"
        manifests.write(directory, "nodes", manifests.nodes())
        for one in wanted:
            if isinstance(one, Case):
                manifests.write(directory, one.name, manifests.objects(one))
        for node in NODES:
            level = packet_level(_EBPF[node]) if mode == "ebpf" else ()
            options = ("--proxy-mode", mode, *level, *agents.options())
            how = {"loader": loader, "cluster_cidrs": agents.cluster_cidrs, "options": options}
            lab.agent(node, manifests=directory, **how).launch()
        for agent in lab.agents.values():
            agent.wait_ready()
        cells = []
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
