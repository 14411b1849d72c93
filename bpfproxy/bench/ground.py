"""The place where a bench runs: a network namespace in which all pods' addresses are local, cgroups, a directory.

Named and removed as a lab is (`bpfproxy.lab.remains`), so that what a killed bench left is found.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import sysconfig
from itertools import count
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

from pyroute2 import IPRoute

from bpfproxy.bench.objects import NODE, POD6, POD_RANGES, address
from bpfproxy.config import Settings
from bpfproxy.errors import UnsupportedError
from bpfproxy.lab import cgroup, netns, remains
from bpfproxy.lab.place import PROJECT, spawn
from bpfproxy.model.address import format_address

_states = count(1)
_SYSCTLS = {
    "ipv4.tcp_max_tw_buckets": 0,  # the arms share reply tuples: TIME_WAIT of one would delay another
    "ipv4.ip_local_port_range": "1024 60999",
}


class BenchError(Exception):
    """A measure failed: there is no figure."""


class Ground:
    """A context manager: entering makes everything, leaving removes everything, whatever happened in between."""

    def __init__(self) -> None:
        self.lab_id = remains.new_id()
        self.directory = remains.directory(self.lab_id)
        """For manifests, state directories and compiled tools."""
        self.netns = f"{remains.prefix(self.lab_id)}-loop"
        top = cgroup.mount_point() / remains.prefix(self.lab_id)
        self.hooked = top / "hooked"
        """The cgroup that agents and engines attach to."""
        self.plain = top / "plain"
        """A cgroup without any hook of ours."""

    def __enter__(self) -> Self:
        if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
            signal.signal(signal.SIGTERM, _leave)
        try:
            remains.claim(self.lab_id)
            for path in (self.hooked, self.plain):
                path.mkdir(parents=True)
            netns.make(self.netns)
            self._make_routes()
        except BaseException:
            remains.remove(self.lab_id)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        remains.remove(self.lab_id)

    def _make_routes(self) -> None:
        with netns.inside(self.netns):
            for key, value in _SYSCTLS.items():
                Path("/proc/sys/net", key.replace(".", "/")).write_text(str(value))
            with IPRoute() as ip:
                loopback = ip.link_lookup(ifname="lo")[0]
                ip.link("set", index=loopback, state="up")
                ip.addr("add", index=loopback, address=format_address(address(6, POD6)), prefixlen=128)
                for pods in POD_RANGES:
                    ip.route("add", type="local", dst=pods, oif=loopback, table=255, scope="host")

    def settings(self, **values: Any) -> Settings:
        """Of an agent or engine in this place; a fresh state directory unless `values` name one."""
        defaults: dict[str, Any] = {
            "state_dir": self.directory / f"state-{next(_states)}",
            "cgroup": self.hooked,
            "acceleration": "none",  # an engine runs in the namespace of the bench itself
            "node_name": NODE,
            "loader": "prebuilt",
        }
        return Settings(**{**defaults, **values})

    def spawn(self, command: list[str], *, cgroup: Path | None = None, **streams: Any) -> subprocess.Popen[str]:
        """Start a process in the namespace and, from its first instruction on, in a cgroup (`plain`)."""
        return spawn(command, namespace=self.netns, cgroup=cgroup or self.plain, lab_id=self.lab_id, **streams)

    def compile(self, name: str) -> Path:
        """Compile the C program `name`, which stands beside this file. Raises UnsupportedError without a compiler."""
        binary = self.directory / name
        if not binary.exists():
            compiler = shutil.which("clang") or shutil.which("cc")
            if compiler is None:
                raise UnsupportedError("the load generators need a C compiler: install clang, or any cc")
            source = Path(__file__).with_name(f"{name}.c")
            subprocess.run([compiler, "-O2", "-pthread", "-o", str(binary), str(source), "-lbpf"], check=True)
        return binary

    def compile_bpf(self, name: str) -> Path:
        """Compile the BPF program `name`, which stands beside this file. Raises UnsupportedError without clang."""
        target = self.directory / f"{name}.bpf.o"
        if not target.exists():
            if shutil.which("clang") is None:
                raise UnsupportedError("programs of the bench are compiled by clang, which was not found")
            source = Path(__file__).with_name(f"{name}.bpf.c")
            # Debian keeps <asm/types.h> in the multiarch directory, which clang does not look into for a BPF target.
            headers = f"/usr/include/{sysconfig.get_config_var('MULTIARCH')}"
            flags = ["-O2", "-g", "-target", "bpf", "-mcpu=v2", "-I", str(PROJECT / "bpf"), "-idirafter", headers]
            subprocess.run(["clang", *flags, "-c", str(source), "-o", str(target)], check=True)
        return target


def _leave(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)
