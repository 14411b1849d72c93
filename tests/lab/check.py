"""Probes in a running lab: what is seen is what the oracle says."""

from __future__ import annotations

from collections.abc import Iterable

from bpfproxy.lab import observe
from bpfproxy.lab.cases import Probe
from bpfproxy.lab.lab import Lab
from bpfproxy.lab.oracle import Expected, Mode
from bpfproxy.lab.place import Outcome


def check(lab: Lab, probes: Iterable[Probe], mode: Mode = "ebpf") -> list[tuple[Probe, Expected, list[Outcome]]]:
    """Send probes and compare; returns what was expected and seen, for further comparisons."""
    results = observe.send_all(lab.places, probes, mode)
    different = [
        f"{probe}: {line}"
        for probe, expected, outcomes in results
        for line in observe.differences(probe, expected, outcomes)
    ]
    assert not different, "\n" + "\n".join(different)
    return results
