"""The cases and their oracle, held against expectations written by hand."""

from __future__ import annotations

import dataclasses
from typing import get_args

import pytest
from msgspec.structs import replace

from bpfproxy.lab import cases, observe, oracle
from bpfproxy.lab.cases import Case, Probe
from bpfproxy.lab.oracle import Expected
from bpfproxy.lab.place import Outcome, Reply

ALL = cases.load()


@pytest.mark.parametrize("case", [case for case in ALL if case.expect], ids=lambda case: case.name)
def test_oracle_agrees_with_hand_written_expectations(case: Case) -> None:
    unused = set(case.expect)
    for family in case.service.families:
        for probe in (*cases.probes(case, family), *cases.outside_probes(case, family)):
            for key in (f"{probe.via} {probe.client}", probe.client):
                if key in case.expect:
                    unused.discard(key)
                    assert _outcome(probe) == " ".join(sorted(case.expect[key].split())), str(probe)
                    break
    assert not unused, "these expectations are of no probe"


def _outcome(probe: Probe) -> str:
    expected = oracle.expect(probe)
    return " ".join(sorted(expected.places)) or expected.answer


def test_every_rule_that_shows_inside_the_cluster_has_a_case() -> None:
    covered = {rule for case in ALL for rule in case.rules}
    # 16 to 18 and the passing of time in 15 are in tests of their own; 17 is served, not translated.
    assert covered >= {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 18}


def test_every_kind_of_frontend_and_of_talk_is_probed() -> None:
    probes = [probe for case in ALL for family in (4, 6) for probe in cases.probes(case, family)]
    assert {probe.via for probe in probes} == set(get_args(cases.Via))
    assert {probe.talk for probe in probes} == {
        *("http", "tcp", "tcp-mapped"),
        *("udp", "udp-mapped", "udp-unconnected", "udp-unconnected-mapped"),
    }
    assert {oracle.expect(probe).answer for probe in probes} == {*get_args(oracle.Answer)}
    outside = [probe for case in ALL for family in (4, 6) for probe in cases.outside_probes(case, family)]
    assert {probe.via for probe in outside} == {*get_args(cases.Via)} - {"localhost"}
    assert {oracle.expect(probe).answer for probe in outside} == {*get_args(oracle.Answer)} - {"unreachable"}


PROBE = next(cases.probes(cases.case("round-robin"), 4))
EXPECTED = oracle.expect(PROBE)
RIGHT = [
    Outcome(Reply(place, EXPECTED.port, (min(EXPECTED.sources[place]), 40000), ""), EXPECTED.peer)
    for place in sorted(EXPECTED.places) * 4
]


def changed(at: int, **fields: object) -> list[Outcome]:
    outcomes = list(RIGHT)
    outcomes[at] = replace(outcomes[at], **fields)
    return outcomes


def replied(at: int, **fields: object) -> list[Outcome]:
    reply = RIGHT[at].reply
    assert reply is not None
    return changed(at, reply=replace(reply, **fields))


def test_what_is_right_differs_in_nothing() -> None:
    assert observe.differences(PROBE, EXPECTED, RIGHT) == []


@pytest.mark.parametrize(
    ("outcomes", "says"),
    [
        (changed(3, reply=None, error="TIMEOUT"), "1 of 16 requests failed: {'TIMEOUT': 1}"),
        (changed(3, peer=("10.244.1.2", 8080)), "peer as the client sees it: ('10.244.1.2', 8080)"),
        (replied(3, peer=("172.18.0.12", 1)), "client as the server sees it: 172.18.0.12"),
        (replied(3, port=8081), "port of the server: 8081"),
        (replied(3, place="pod2c"), "pod2c answered"),
        (replied(3, place="pod1a"), "shares are not even"),
        (RIGHT[:3], "pod2b never answered"),
    ],
)
def test_what_is_wrong_is_found(outcomes: list[Outcome], says: str) -> None:
    assert says in "\n".join(observe.differences(PROBE, EXPECTED, outcomes))


def test_a_wrong_kind_of_answer_is_found() -> None:
    refused = [Outcome(error="ECONNREFUSED")] * 4
    about = frozenset([("10.96.1.0", 80)])
    by_icmp = Expected("refused", errors=frozenset(["ECONNREFUSED"]), refused_by="icmp", about=about)
    told = Outcome(error="ECONNREFUSED", by="icmp", about=("10.96.1.0", 80))
    assert observe.differences(PROBE, by_icmp, [told]) == []
    for wrong, says in (
        (replace(told, by="reset", about=None), "refused by: reset, not icmp"),
        (replace(told, about=("10.244.1.2", 80)), "an ICMP error about ('10.244.1.2', 80)"),
    ):
        assert says in "\n".join(observe.differences(PROBE, by_icmp, [told, wrong]))
    unreachable = [Outcome(error="EHOSTUNREACH")] * 4
    assert observe.differences(PROBE, Expected("refused", errors=frozenset(["ECONNREFUSED"])), refused) == []
    assert observe.differences(PROBE, Expected("unreachable", errors=frozenset(["EHOSTUNREACH"])), unreachable) == []
    assert observe.differences(PROBE, Expected("untouched"), refused) == []
    for answer, outcomes in (
        ("refused", unreachable),
        ("refused", RIGHT),
        ("unreachable", refused),
        ("untouched", RIGHT),
    ):
        assert observe.differences(PROBE, Expected(answer), outcomes), answer  # type: ignore[arg-type]


def test_one_that_should_stick_and_does_not_is_found() -> None:
    sticky = replace_expected(sticky=True, even=False)
    assert "sticks to one" in "\n".join(observe.differences(PROBE, sticky, RIGHT))
    assert observe.differences(PROBE, sticky, [RIGHT[0]] * 4) == []


def replace_expected(**fields: object) -> Expected:
    return dataclasses.replace(EXPECTED, **fields)  # type: ignore[arg-type]


def test_addresses_and_node_ports_are_unique() -> None:
    seen = [
        (case.vip(via, family), family)
        for case in ALL
        for via in ("ClusterIP", "ExternalIP", "LoadBalancer")
        for family in (4, 6)
    ]
    ports = [case.node_port(port) for case in ALL for port in case.service.ports]
    assert len(set(seen)) == len(seen)
    assert len(set(ports)) == len(ports)
