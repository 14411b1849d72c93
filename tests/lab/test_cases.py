"""Every case, under both loaders, in both families, from pods and nodes: what is seen is what the oracle says."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import pytest

from bpfproxy.lab import cases, observe, oracle
from bpfproxy.lab.cases import Case
from bpfproxy.lab.lab import Lab
from bpfproxy.lab.layout import Family

LOADERS = ("bcc", "prebuilt")


def parameters() -> Iterator[object]:
    for loader in LOADERS:
        for detector in (True, False):
            for case in cases.load():
                if case.detector is detector:
                    for family in (4, 6):
                        name = f"{loader}-ipv{family}-{case.name}"
                        yield pytest.param((loader, detector), case, family, id=name)


@pytest.mark.parametrize(("served", "case", "family"), parameters(), indirect=["served"])
def test_case(served: Lab, case: Case, family: Family) -> None:
    different = []
    answered: defaultdict[tuple[str, int, str], set[str]] = defaultdict(set)
    for probe in cases.probes(case, family):
        expected = oracle.expect(probe)
        outcomes = observe.send(served.places, probe, expected)
        different += [f"{probe}: {line}" for line in observe.differences(probe, expected, outcomes)]
        if expected.sticky:
            places = {one.reply.place for one in outcomes if one.reply}
            answered[probe.client, probe.port.port, probe.port.protocol] |= places
    different += [
        f"{client}: {sorted(seen)} by different addresses" for client, seen in answered.items() if len(seen) > 1
    ]
    assert not different, "\n" + "\n".join(different)
