"""The agent as users run it: a process of its own, by the command line."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from msgspec import Struct

from bpfproxy.bench.ground import BenchError, Ground
from bpfproxy.bench.objects import NODE

_TIMEOUT = 300.0
_KIB_PER_MIB = 1024


class AgentError(BenchError):
    """The agent ended, or was not ready in time; the message carries what it said."""


class Memory(Struct, frozen=True):
    """Of a process, MiB."""

    rss: float
    anonymous: float
    file: float
    """Files and maps in memory, shared with others as far as others use them: libraries, mapped BPF maps."""
    peak: float


class RunningAgent(Struct, frozen=True):
    """An agent that is ready."""

    pid: int
    seconds: float
    """From fork to ready."""
    state: Path

    def memory(self) -> Memory:
        """What it takes now."""
        lines = dict(line.split(":", 1) for line in Path(f"/proc/{self.pid}/status").read_text().splitlines())

        def mebibytes(name: str) -> float:
            return int(lines[name].split()[0]) / _KIB_PER_MIB

        shared = mebibytes("RssFile") + mebibytes("RssShmem")
        return Memory(mebibytes("VmRSS"), mebibytes("RssAnon"), shared, mebibytes("VmHWM"))


@contextmanager
def running(ground: Ground, manifests: Path, loader: str, state: Path) -> Iterator[RunningAgent]:
    """An agent on `manifests`; it ends with the block, and its datapath stays in place. Raises AgentError."""
    said = state.with_suffix(".log")
    address = state.with_suffix(".notify")
    flags = {"manifests": manifests, "node-name": NODE, "cgroup": ground.hooked, "state-dir": state, "loader": loader}
    flags["acceleration"] = "none"
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    command = ["/usr/bin/env", f"NOTIFY_SOCKET={address}", sys.executable, "-m", "bpfproxy", "run", *words]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel, said.open("a") as log:
        channel.bind(str(address))
        begin = time.perf_counter()
        process = ground.spawn(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            _wait_until_ready(channel, process, said)
            yield RunningAgent(process.pid, time.perf_counter() - begin, state)
        finally:
            _end(process)
            address.unlink()


def _wait_until_ready(channel: socket.socket, process: subprocess.Popen[str], said: Path) -> None:
    end = os.pidfd_open(process.pid)
    try:
        readable, _, _ = select.select([channel.fileno(), end], [], [], _TIMEOUT)
    finally:
        os.close(end)
    if channel.fileno() not in readable or channel.recv(4096) != b"READY=1":
        why = "ended" if end in readable else f"was not ready within {_TIMEOUT:g} s"
        raise AgentError(f"the agent {why}: {said.read_text().strip()[-2000:]}")


def _end(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
