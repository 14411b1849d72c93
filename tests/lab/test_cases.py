"""Every case in both families: what is seen is what the oracle says. From pods and nodes at socket level, under both
loaders; from outside and from pods without hooks by tc and by XDP."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable

import pytest
from _pytest.mark import ParameterSet

from bpfproxy.lab import cases, observe, oracle
from bpfproxy.lab.cases import Case, Probe
from bpfproxy.lab.lab import Lab
from bpfproxy.lab.layout import Family
from tests.lab.conftest import Mode

ALL = cases.load()
LOADERS = ("bcc", "prebuilt")


def named(case: Case) -> str:
    return case.name


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("case", [case for case in ALL if case.detector], ids=named)
@pytest.mark.parametrize("served", LOADERS, indirect=True)
def test_case(served: Lab, case: Case, family: Family) -> None:
    check(served, case, family)


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("case", [case for case in ALL if not case.detector], ids=named)
@pytest.mark.parametrize("served_without_detector", LOADERS, indirect=True)
def test_case_without_detector(served_without_detector: Lab, case: Case, family: Family) -> None:
    check(served_without_detector, case, family)


OUTSIDE = {
    "tc": Mode({"node1": "tc", "node2": "tc"}),
    "xdp": Mode({"node1": "xdp", "node2": "xdp"}),
    "bcc": Mode({"node1": "tc", "node2": "xdp"}, loader="bcc"),
    "tc-no-detector": Mode({"node1": "tc", "node2": "tc"}, cluster_cidrs=()),
    "xdp-no-detector": Mode({"node1": "xdp", "node2": "xdp"}, cluster_cidrs=()),
}
COMPILED = ("node-port", "external-local", "hairpin", "affinity", "no-endpoints")
"""The cases from outside that programs compiled on the node are tried with; packet tables cover them in full."""


def from_outside() -> Iterable[ParameterSet]:
    """Modes and cases that go together, mode by mode, since each takes a lab of its own."""
    for name in OUTSIDE:
        for case in ALL:
            if case.detector != name.endswith("no-detector") and (name != "bcc" or case.name in COMPILED):
                yield pytest.param(OUTSIDE[name], case, id=f"{name}-{case.name}")


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize(("outside", "case"), from_outside(), indirect=["outside"])
def test_case_from_outside(outside: Lab, case: Case, family: Family) -> None:
    check(outside, case, family, cases.outside_probes)


def check(
    lab: Lab, case: Case, family: Family, probes: Callable[[Case, Family], Iterable[Probe]] = cases.probes
) -> None:
    different = []
    answered: defaultdict[tuple[str, int, str], set[str]] = defaultdict(set)
    for probe in probes(case, family):
        expected = oracle.expect(probe)
        outcomes = observe.send(lab.places, probe, expected)
        different += [f"{probe}: {line}" for line in observe.differences(probe, expected, outcomes)]
        if expected.sticky:
            places = {one.reply.place for one in outcomes if one.reply}
            answered[probe.client, probe.port.port, probe.port.protocol] |= places
    split = {client: seen for client, seen in answered.items() if len(seen) > 1}
    different += [f"{client}: {sorted(seen)} by different addresses" for client, seen in split.items()]
    assert not different, "\n" + "\n".join(different)
