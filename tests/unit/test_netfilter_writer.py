"""Rows of chains and rules: whatever is changed in whatever order, what is written is what is there; what the kernel
refuses holds up nothing that does not need it."""

from __future__ import annotations

from collections.abc import Mapping

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bpfproxy.netfilter.rows import ONCE, ChainKey, Kind, RuleKey, SharedChainKey, TableKey
from bpfproxy.netfilter.rules import Rule
from bpfproxy.netfilter.writer import RuleWriter
from tests.unit.simtables import SimIptables

Row = object
Rows = dict[TableKey, Row]


class Layout:
    tables: tuple[str, ...] = ("filter", "nat")

    def kind(self, table: str, chain: str) -> Kind:
        return "own" if chain.startswith("OWN-") else "shared" if chain == "SHARED" else "foreign"

    def owns(self, table: str, chain: str, rule: Rule) -> bool:
        return rule.target == "SHARED"

    def is_last(self, key: RuleKey) -> bool:
        return key.rule.target == "OWN-LAST"


BASE: Rows = {
    SharedChainKey(4, "nat", "SHARED"): True,
    SharedChainKey(4, "filter", "SHARED"): True,
    ChainKey(4, "nat", "OWN-LAST"): (),
    RuleKey(4, "nat", "SHARED", Rule("-j OWN-LAST")): ONCE,
    RuleKey(4, "nat", "PREROUTING", Rule("-j SHARED")): ONCE,
    RuleKey(4, "filter", "INPUT", Rule("-m conntrack --ctstate NEW -j SHARED")): ONCE,
}


def service(number: int, endpoints: int) -> Rows:
    """A Service of two layers; without endpoints it is refused."""
    to = f"-p tcp -m tcp -d 10.0.0.{number} --dport 80"
    if not endpoints:
        return {RuleKey(4, "filter", "SHARED", Rule(f"{to} -j REJECT")): ONCE}
    ends = [f"OWN-END-{number}-{end}" for end in range(endpoints)]
    rows: Rows = {ChainKey(4, "nat", end): (Rule(f"-j DNAT --to-destination {end[-1]}"),) for end in ends}
    rows[ChainKey(4, "nat", f"OWN-{number}")] = tuple(Rule(f"-j {end}") for end in ends)
    rows[RuleKey(4, "nat", "SHARED", Rule(f"{to} -j OWN-{number}"))] = ONCE
    return rows


def place(key: TableKey, row: Row) -> int:
    match key:
        case SharedChainKey():
            at = 0
        case ChainKey():
            at = 1 if "END" in key.chain or "LAST" in key.chain else 2
        case _:
            at = 3
    return at if row is not None else 10 - at


def changes(applied: Mapping[TableKey, Row], wanted: Mapping[TableKey, Row]) -> list[tuple[TableKey, Row]]:
    found: list[tuple[TableKey, Row]] = [(key, row) for key, row in wanted.items() if applied.get(key) != row]
    found += [(key, None) for key in applied if key not in wanted]
    return sorted(found, key=lambda change: place(*change))


STATES = st.dictionaries(st.integers(1, 4), st.integers(0, 3), max_size=4)
SEQUENCES = st.lists(st.tuples(STATES, st.booleans()), min_size=1, max_size=6)
MORE = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def wanted_of(state: Mapping[int, int]) -> Rows:
    return {**BASE, **{key: row for number, ends in state.items() for key, row in service(number, ends).items()}}


@MORE
@given(SEQUENCES)
def test_any_changes_and_restarts(sequence: list[tuple[dict[int, int], bool]]) -> None:
    kernel = SimIptables(4)
    writer = RuleWriter({4: kernel}, Layout())
    applied: Mapping[TableKey, Row] = {}
    for state, restart in sequence:
        if restart:
            writer = RuleWriter({4: kernel}, Layout())
            applied = writer.read()
        wanted = wanted_of(state)
        assert writer.apply(changes(applied, wanted)) == []
        assert writer.read() == wanted
        assert kernel.tables["nat"]["SHARED"].rules[-1].target == "OWN-LAST"
        applied = wanted
    assert writer.apply(changes(applied, {})) == []
    assert RuleWriter({4: kernel}, Layout()).read() == {}
    assert all(chain.built_in and not chain.rules for one in kernel.tables.values() for chain in one.values())


@MORE
@given(STATES, STATES, st.integers(1, 4))
def test_a_refused_service_holds_up_no_other(before: dict[int, int], after: dict[int, int], bad: int) -> None:
    kernel = SimIptables(4)
    writer = RuleWriter({4: kernel}, Layout())
    first = wanted_of(before)
    assert writer.apply(changes({}, first)) == []
    kernel.refuses = lambda line: line.startswith("-A") and f"-j OWN-END-{bad}-" in line
    wanted = wanted_of(after)
    refused = {key for key, _ in writer.apply(changes(first, wanted))}
    found = writer.read()
    for key in wanted.keys() | first.keys():
        if f"-{bad}" in str(key) or f".{bad} " in str(key):
            continue
        assert key not in refused
        assert found.get(key) == wanted.get(key)
    for key in refused:
        assert found.get(key) == first.get(key)


def test_a_change_costs_what_changed() -> None:
    kernel = SimIptables(4)
    writer = RuleWriter({4: kernel}, Layout())
    rows = wanted_of(dict.fromkeys(range(1, 200), 2))
    writer.apply(changes({}, rows))
    kernel.lines.clear()
    commits = kernel.commits
    after = {**rows, **service(7, 3)}
    assert writer.apply(changes(rows, after)) == []
    assert kernel.lines == [
        ":OWN-END-7-2 - [0:0]",
        ":OWN-7 - [0:0]",
        "-A OWN-END-7-2 -j DNAT --to-destination 2",
        "-A OWN-7 -j OWN-END-7-0",
        "-A OWN-7 -j OWN-END-7-1",
        "-A OWN-7 -j OWN-END-7-2",
    ]
    assert kernel.commits == commits + 1


def test_a_service_that_loses_its_endpoints_is_never_let_through() -> None:
    kernel = SimIptables(4)
    writer = RuleWriter({4: kernel}, Layout())
    rows = {**BASE, **service(1, 1)}
    writer.apply(changes({}, rows))
    kernel.lines.clear()
    without = {**BASE, **service(1, 0)}
    writer.apply(changes(rows, without))
    assert [line.split()[0] for line in kernel.lines] == ["-I", ":OWN-END-1-0", ":OWN-1", "-D", "-X", "-X"]
    kernel.lines.clear()
    writer.apply(changes(without, rows))
    assert [line.split()[0] for line in kernel.lines][-1] == "-D"


def test_a_family_without_tools_is_refused() -> None:
    key = SharedChainKey(6, "nat", "SHARED")
    assert RuleWriter({4: SimIptables(4)}, Layout()).apply([(key, True)]) == [(key, "no tools for IPv6")]


def test_a_kernel_that_takes_nothing_is_not_asked_for_ever() -> None:
    kernel = SimIptables(4)
    tries = 0

    def refuse(line: str) -> bool:
        nonlocal tries
        tries += 1
        return True

    kernel.refuses = refuse
    rows = wanted_of(dict.fromkeys(range(1, 250), 2))
    refused = RuleWriter({4: kernel}, Layout()).apply(changes({}, rows))
    assert {key for key, _ in refused} == rows.keys()
    assert tries < 250
    assert RuleWriter({4: kernel}, Layout()).read() == {}
