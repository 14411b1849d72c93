"""For tests that need what not every kernel has: they are collected where it is there. `./dev kernel-test` runs them on
a kernel that has it all."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest


def _has_ipvs() -> bool:
    """Whether virtual servers can be made, on dummy devices, and every protocol be spoken to them."""
    if os.geteuid() != 0 or shutil.which("modprobe") is None:
        return False
    modules = ("ip_vs", "dummy", "ip_set", "sctp")
    return all(subprocess.run(["modprobe", name], capture_output=True).returncode == 0 for name in modules)


collect_ignore_glob = [] if _has_ipvs() else ["test_ipvs*.py"]


@pytest.fixture
def node(namespace: str) -> str:
    """A network namespace with addresses, the test's own; the test runs in it."""
    commands = "link add up0 type veth peer name up1\nlink set up0 up\nlink set up1 up\n"
    commands += "addr add 192.0.2.1/24 dev up0\naddr add 2001:db8:2::1/64 dev up0 nodad\n"
    subprocess.run(["ip", "-batch", "-"], input=commands.encode(), check=True)
    return namespace


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A state directory."""
    directory = tmp_path / "state"
    directory.mkdir()
    return directory
