"""Random and mutated packets: none leaves with an error that it did not bring, none is translated without an entry,
each is counted once, and all reasons are met.

BPFPROXY_FUZZ_PACKETS sets how many go through each hook, BPFPROXY_FUZZ_SEED where they start.
"""

from __future__ import annotations

import errno
import os
import random
from typing import Final

import pytest

from bpfproxy.datapath import testrun
from tests.packet import packets as pk
from tests.packet.checker import (
    ETHERTYPES,
    ICMP,
    Dissected,
    check_answer,
    check_translated,
    dissect,
    ethertype,
)
from tests.packet.corpus import Fuzzer, arriving, leaving, services
from tests.packet.datapath import Datapath, Layer
from tests.packet.entries import Entries

COUNT: Final = int(os.environ.get("BPFPROXY_FUZZ_PACKETS", "100000"))
SEED: Final = int(os.environ.get("BPFPROXY_FUZZ_SEED", "1"))
FORGET: Final = 50_000
"""Flows are forgotten after so many packets, or no source port would be free for new ones."""

SENT: Final = {"xdp": {pk.XDP_TX, pk.XDP_REDIRECT}, "tc": {pk.TC_REDIRECT}}

NOT_HERE: Final = {
    "NO_STATE": "of the socket level",
    "PORT_TAKEN": "of the socket level",
    "BROKEN": "a bug, or a table that points nowhere: none may",
    "NO_FLOW": "the map of flows would have to refuse a row: an LRU map does not",
    "NO_SOURCE": "the node has addresses: test_router.py",
}
"""Reasons that this run cannot meet."""
ONLY_XDP: Final = {"NO_NEIGHBOUR": "XDP leaves packets to tc"}
OUT: Final = {
    "NOT_OURS", "REPLY", "DIRECT", "ICMP", "FRAGMENT", "MALFORMED", "OTHER_PROTOCOL", "TAGGED",
}  # fmt: skip
"""All that may become of what leaves."""


class Subject:
    """One hook, and what is known of the packets that went through it."""

    def __init__(self, dp: Datapath, hook: str) -> None:
        program = dp.loaded.programs[f"bp_{hook}"]
        flags = 0 if hook == "xdp" else testrun.CHECKSUM_COMPLETE
        self.run = testrun.Runner(program.fd, program.type, flags=flags, size=4096)
        self.run_without_sum = testrun.Runner(program.fd, program.type, size=4096)
        self.entries = Entries(dp)
        self.runs = self.changed = 0
        self.layer: Layer = "xdp" if hook == "xdp" else "tc"

    def pass_on(self, raw: bytes) -> None:
        """One packet. Raises AssertionError."""
        self.runs += 1
        try:
            out, whole = self.run(raw), True
        except OSError as error:
            if error.errno != errno.EBADMSG:
                raise
            self.runs += 1
            out, whole = self.run_without_sum(raw), False
        assert out.verdict in pk.VERDICTS[self.layer]
        if out.verdict == pk.DROP[self.layer]:
            return
        if out.packet == raw:
            assert out.verdict not in SENT[self.layer]
            return
        self.changed += 1
        kind, l3 = ethertype(raw)
        p = dissect(raw, l3, ETHERTYPES[kind])
        assert p is not None
        sent = out.verdict in SENT[self.layer]
        if _is_answer(p, out.packet):
            check_answer(p, out.packet, sent)
            return
        assert whole  # answers give up what the device has summed
        q = check_translated(p, out.packet, sent)
        assert self.entries.allow(p, q)


def _is_answer(p: Dissected, found: bytes) -> bool:
    """Packets of other protocols do not become ICMP by translation."""
    return p.protocol != ICMP[p.family] and found[p.l3 + (9 if p.family == 4 else 6)] == ICMP[p.family]


def expected_reasons(dp: Datapath, hook: str) -> set[str]:
    if hook == "tc_out":
        return OUT
    passed_over = NOT_HERE | ({} if hook == "xdp" else ONLY_XDP)
    return {reason.name for reason in dp.reasons} - passed_over.keys()


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("hook", ["xdp", "tc_in", "tc_out"])
def test_fuzz(dp: Datapath, hook: str) -> None:
    first = arriving()
    fuzzer = Fuzzer(leaving() + first[::8] if hook == "tc_out" else first, random.Random(SEED))
    subject = Subject(dp, hook)
    reached: dict[str, int] = {}
    for start in range(0, COUNT, FORGET):
        dp.clear()
        dp.serve(*services())
        for raw in first:  # flows to be hit
            dp.run("tc_in" if hook == "tc_out" else hook, raw)
        dp.clear_counters()
        subject.runs = 0
        with dp.inside():
            for _ in range(min(FORGET, COUNT - start)):
                raw = fuzzer.packet()
                try:
                    subject.pass_on(raw)
                except (AssertionError, IndexError, KeyError, OSError):
                    print(f"{hook}: {raw.hex()} became {dp.run_here(hook, raw)}")
                    raise
        counted = dp.counted()
        assert sum(counted.values()) == subject.runs, counted
        for name, count in counted.items():
            where, _, reason = name.partition(".")
            assert where == hook.upper()
            reached[reason] = reached.get(reason, 0) + count
    assert subject.changed > COUNT // 10
    assert reached.keys() == expected_reasons(dp, hook), reached
