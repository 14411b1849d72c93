"""Every case in both families: what is seen is what the oracle says. From pods and nodes at socket level, under both
loaders; from outside and from pods without hooks by tc and by XDP."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import pytest

from bpfproxy.lab import cases
from bpfproxy.lab.cases import Agents, Case, Probe
from bpfproxy.lab.lab import Lab
from bpfproxy.lab.layout import Family
from tests.lab.check import check

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
    check_case(served, cases.probes(case, family))


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize(
    ("served_otherwise", "case"),
    [(case.agents, case) for case in UNUSUAL],
    indirect=["served_otherwise"],
    ids=[case.name for case in UNUSUAL],
)
def test_case_of_agents_that_are_set_otherwise(served_otherwise: Lab, case: Case, family: Family) -> None:
    check_case(served_otherwise, cases.probes(case, family))
    check_case(served_otherwise, cases.outside_probes(case, family))


COMPILED = ("node-port", "external-local", "hairpin", "affinity")
"""The cases from outside that programs compiled on the node are tried with; packet tables cover them in full."""


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("case", USUAL, ids=named)
@pytest.mark.parametrize("outside", ["tc", "xdp"], indirect=True)
def test_case_from_outside(outside: Lab, case: Case, family: Family) -> None:
    check_case(outside, cases.outside_probes(case, family))


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("case", [cases.case(name) for name in COMPILED], ids=named)
@pytest.mark.parametrize("outside", ["compiled"], indirect=True)
def test_case_from_outside_compiled(outside: Lab, case: Case, family: Family) -> None:
    check_case(outside, cases.outside_probes(case, family))


def check_case(lab: Lab, probes: Iterable[Probe]) -> None:
    """Probes of one case and family: with affinity, all addresses of a Service lead a client to the same pod."""
    answered: defaultdict[tuple[str, int, str], set[str]] = defaultdict(set)
    for probe, expected, outcomes in check(lab, probes):
        if expected.sticky:
            places = {one.reply.place for one in outcomes if one.reply}
            answered[probe.client, probe.port.port, probe.port.protocol] |= places
    split = {client: seen for client, seen in answered.items() if len(seen) > 1}
    assert not split, "\n".join(f"{client}: {sorted(seen)} by different addresses" for client, seen in split.items())
