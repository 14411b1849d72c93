"""Every case in both families: what is seen is what the oracle says. From pods and nodes at socket level, under both
loaders; from outside and from pods without hooks by tc and by XDP."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import pytest

from bpfproxy.lab import cases
from bpfproxy.lab.cases import Case, Probe
from bpfproxy.lab.lab import Lab
from bpfproxy.lab.layout import Family
from tests.lab.check import check

ALL = cases.load()
LOADERS = ("bcc", "prebuilt")


def named(case: Case) -> str:
    return case.name


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("case", [case for case in ALL if case.detector], ids=named)
@pytest.mark.parametrize("served", LOADERS, indirect=True)
def test_case(served: Lab, case: Case, family: Family) -> None:
    check_case(served, cases.probes(case, family))


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("case", [case for case in ALL if not case.detector], ids=named)
@pytest.mark.parametrize("served_without_detector", LOADERS, indirect=True)
def test_case_without_detector(served_without_detector: Lab, case: Case, family: Family) -> None:
    check_case(served_without_detector, cases.probes(case, family))


COMPILED = ("node-port", "external-local", "hairpin", "affinity")
"""The cases from outside that programs compiled on the node are tried with; packet tables cover them in full."""


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("case", [case for case in ALL if case.detector], ids=named)
@pytest.mark.parametrize("outside", ["tc", "xdp"], indirect=True)
def test_case_from_outside(outside: Lab, case: Case, family: Family) -> None:
    check_case(outside, cases.outside_probes(case, family))


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("case", [case for case in ALL if not case.detector], ids=named)
@pytest.mark.parametrize("outside", ["no-detector"], indirect=True)
def test_case_from_outside_without_detector(outside: Lab, case: Case, family: Family) -> None:
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
