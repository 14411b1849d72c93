"""Cases of the parity run through IPVS, with agents that are real: a few, since the whole column takes an emulated
processor long (`./dev kernel-test --parity`)."""

from __future__ import annotations

import subprocess
import sys

import msgspec

CASES = ("single-stack", "hairpin", "external-local-terminating", "internal-local-empty")


def test_it_does_what_the_semantics_say() -> None:
    command = [sys.executable, "-m", "bpfproxy", "parity", "--modes", "ipvs", "--cases", ",".join(CASES), "-o", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    report = msgspec.json.decode(done.stdout)
    assert [(run["mode"], run["missing"]) for run in report["modes"]] == [("ipvs", "")]
    assert {cell["case"] for cell in report["cells"]} == set(CASES)
