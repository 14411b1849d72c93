"""Send what a probe says, and compare what was seen with what the oracle expects."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from bpfproxy.lab import oracle
from bpfproxy.lab.cases import Probe
from bpfproxy.lab.layout import SPOTS
from bpfproxy.lab.oracle import Expected, Mode
from bpfproxy.lab.place import Outcome, Place, Reply

_PER_PLACE = 16
"""Sockets per place that may answer: with up to four, one is missed by chance in less than one of ten million runs."""


_PATIENCE = 6.0
"""Seconds to wait for an answer: how busy a machine is says nothing about a proxier. A probe ends with the first
request that has none: it differs already."""


def send_all(
    places: Mapping[str, Place], probes: Iterable[Probe], mode: Mode = "ebpf"
) -> list[tuple[Probe, Expected, list[Outcome]]]:
    """Send probes, each with the expectation of the oracle: all clients at the same time, but one after another where
    backends take turns."""

    def send_those(one_after_another: list[Probe]) -> list[tuple[Probe, Expected, list[Outcome]]]:
        return [
            (probe, expected, send(places, probe, expected))
            for probe in one_after_another
            for expected in (oracle.expect(probe, mode),)
        ]

    groups: defaultdict[str, list[Probe]] = defaultdict(list)
    for probe in probes:
        groups["" if probe.case.service.scheduler == "round-robin" else probe.client].append(probe)
    if not groups:
        return []
    with ThreadPoolExecutor(len(groups)) as threads:
        return [result for results in threads.map(send_those, groups.values()) for result in results]


def send(places: Mapping[str, Place], probe: Probe, expected: Expected) -> list[Outcome]:
    """As many requests as the expectation needs: one per TCP connection, two per UDP socket."""
    place = places[probe.client]
    if expected.answer == "untouched":
        return place.request(probe.flow(timeout=0.2))
    if expected.answer != "answered":
        if "TIMEOUT" in expected.errors:
            return place.request(probe.flow(timeout=0.25), sockets=2, together=True)
        # One refusal of TCP may take a second: the first comes back while connect() still holds the socket.
        return place.request(probe.flow(), sockets=1 if expected.by_packet else 4)
    sockets = 4 if expected.sticky else _PER_PLACE * len(expected.places)
    flow = probe.flow(timeout=_PATIENCE)
    return place.request(flow, sockets=sockets, per_socket=_per_socket(probe), most_timeouts=1)


def _per_socket(probe: Probe) -> int:
    return 2 if probe.talk.startswith("udp") else 1


def differences(probe: Probe, expected: Expected, outcomes: list[Outcome]) -> list[str]:
    """How the outcomes differ from the expectation, a line each; empty if they do not."""
    if expected.answer == "untouched":
        return [f"answered, though it is no frontend: {one}" for one in outcomes if one.reply]
    if expected.answer != "answered":
        strange = [one for one in outcomes if not _past_the_node(probe, expected, one)]
        wrong = {one.error or f"answer of {one.reply}" for one in strange} - expected.errors
        found = [f"outcome: {one}, not {' or '.join(sorted(expected.errors))}" for one in sorted(wrong)]
        return found + _refusals(expected, outcomes)
    failed = Counter(one.error for one in outcomes if one.error)
    if failed:
        return [f"{failed.total()} of {len(outcomes)} requests failed: {dict(failed)}"]
    replies = [one.reply for one in outcomes if one.reply]
    return [
        *_unlike("port of the server", expected.port, [reply.port for reply in replies]),
        *_sources(expected, replies),
        *_unlike("peer as the client sees it", expected.peer, [one.peer for one in outcomes]),
        *_places(probe, expected, [reply.place for reply in replies]),
    ]


def _past_the_node(probe: Probe, expected: Expected, outcome: Outcome) -> bool:
    """An answer that came the straight way. An unconnected socket takes it, from somebody to whom it never spoke."""
    if outcome.reply is None or outcome.reply.place not in expected.lost:
        return False
    return outcome.peer == (SPOTS[outcome.reply.place].address(probe.family), expected.port)


def _refusals(expected: Expected, outcomes: Iterable[Outcome]) -> list[str]:
    refused = [one for one in outcomes if one.error == oracle.ERRORS["refused"]]
    ways = [one.by for one in refused] if expected.refused_by else []
    strange = {one.about for one in refused if one.about} - expected.about
    return [
        *_unlike("refused by", expected.refused_by, ways),
        *(f"an ICMP error about {one}, not {sorted(expected.about)}" for one in sorted(strange)),
    ]


def _unlike(what: str, wanted: object, seen: Sequence[object]) -> list[str]:
    others = {str(one) for one in seen if one != wanted}
    return [f"{what}: {other}, not {wanted}" for other in sorted(others)]


def _sources(expected: Expected, replies: Sequence[Reply]) -> list[str]:
    seen = {(reply.place, reply.peer[0]) for reply in replies if reply.place in expected.sources}
    return [
        f"client as the server sees it: {peer} in {place}, not {' or '.join(sorted(expected.sources[place]))}"
        for place, peer in sorted(seen)
        if peer not in expected.sources[place]
    ]


def _places(probe: Probe, expected: Expected, answered: list[str]) -> list[str]:
    found = [f"{place} answered" for place in sorted(set(answered) - expected.places)]
    size = _per_socket(probe)
    by_socket = [set(answered[at : at + size]) for at in range(0, len(answered), size)]
    found += [f"one socket got answers of {' and '.join(sorted(one))}" for one in by_socket if len(one) > 1]
    if expected.sticky:
        if len(set(answered)) > 1:
            found.append(f"{' and '.join(sorted(set(answered)))} answered a client that sticks to one")
        return found
    found += [f"{place} never answered" for place in sorted(expected.places - set(answered))]
    shares = Counter(answered)
    if expected.even and max(shares.values()) - min(shares.values()) > 0:
        found.append(f"shares are not even: {dict(shares)}")
    return found
