"""Every case in both families: what is seen is what the oracle says. From pods and nodes at socket level, under both
loaders; from outside and from pods without hooks by tc and by XDP."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable

import pytest

from bpfproxy.lab import cases, observe
from bpfproxy.lab.cases import Agents, Case, Probe
from bpfproxy.lab.lab import Lab
from bpfproxy.lab.layout import Family

ALL = cases.load()
USUAL = [case for case in ALL if case.agents == Agents()]
UNUSUAL = [case for case in ALL if case not in USUAL]
LOADERS = ("bcc", "prebuilt")


def named(case: Case) -> str:
    return case.name


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("case", USUAL, ids=named)
@pytest.mark.parametrize("served", LOADERS, indirect=True)
def test_case(served: Lab, case: Case, family: Family) -> None:
    check(served, case, family)


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize(
    ("served_otherwise", "case"),
    [(case.agents, case) for case in UNUSUAL],
    indirect=["served_otherwise"],
    ids=[case.name for case in UNUSUAL],
)
def test_case_of_agents_that_are_set_otherwise(served_otherwise: Lab, case: Case, family: Family) -> None:
    check(served_otherwise, case, family)
    check(served_otherwise, case, family, cases.outside_probes)


COMPILED = ("node-port", "external-local", "hairpin", "affinity")
"""The cases from outside that programs compiled on the node are tried with; packet tables cover them in full."""


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("case", USUAL, ids=named)
@pytest.mark.parametrize("outside", ["tc", "xdp"], indirect=True)
def test_case_from_outside(outside: Lab, case: Case, family: Family) -> None:
    check(outside, case, family, cases.outside_probes)


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("case", [cases.case(name) for name in COMPILED], ids=named)
@pytest.mark.parametrize("outside", ["compiled"], indirect=True)
def test_case_from_outside_compiled(outside: Lab, case: Case, family: Family) -> None:
    check(outside, case, family, cases.outside_probes)


def check(
    lab: Lab, case: Case, family: Family, probes: Callable[[Case, Family], Iterable[Probe]] = cases.probes
) -> None:
    different = []
    answered: defaultdict[tuple[str, int, str], set[str]] = defaultdict(set)
    for probe, expected, outcomes in observe.send_all(lab.places, probes(case, family)):
        different += [f"{probe}: {line}" for line in observe.differences(probe, expected, outcomes)]
        if expected.sticky:
            places = {one.reply.place for one in outcomes if one.reply}
            answered[probe.client, probe.port.port, probe.port.protocol] |= places
    split = {client: seen for client, seen in answered.items() if len(seen) > 1}
    different += [f"{client}: {sorted(seen)} by different addresses" for client, seen in split.items()]
    assert not different, "\n" + "\n".join(different)
