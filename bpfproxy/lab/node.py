"""The agent of a lab's node: the real command line, in the node's network namespace and cgroup."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from bpfproxy.api import open_view
from bpfproxy.lab.layout import CLUSTER_CIDRS
from bpfproxy.lab.place import PROJECT, spawn
from bpfproxy.lab.topology import Topology
from bpfproxy.lab.wait import PATIENCE, wait_until

LoaderName = Literal["bcc", "prebuilt"]
READY = re.compile(r"\bevent=ready\b")


def packet_level(acceleration: str, *, host_routing: bool = False) -> tuple[str, ...]:
    """Flags of `bpfproxy run` that turn on the packet level (`tc`, `xdp`, `auto`) on the devices that a node has, and
    on further uplinks that it may get (`eth1`)."""
    past_the_stack = ("--host-routing",) if host_routing else ()
    return ("--acceleration", acceleration, "--device", "eth*", "--pod-device", "pod*", *past_the_stack)


class AgentError(Exception):
    """An agent, or a command beside it, ended otherwise than it should; the message carries what it said."""


@dataclass
class Agent:
    """One agent and the commands beside it. Its state directory outlives it, as on a real node."""

    topology: Topology
    node: str
    manifests: Path
    """Directory or file that it watches."""
    loader: LoaderName = "bcc"
    cluster_cidrs: tuple[str, ...] = CLUSTER_CIDRS
    options: tuple[str, ...] = ()
    """More flags of `bpfproxy run`."""
    project: Path = PROJECT
    """The checkout whose code it runs."""
    state: Path = field(init=False)
    log: Path = field(init=False)
    """Standard error of all its runs."""
    _process: subprocess.Popen[str] | None = None
    _began: int = 0
    """Where the log of the present run begins, bytes."""

    def __post_init__(self) -> None:
        directory = self.topology.directory / self.node
        directory.mkdir(exist_ok=True)
        self.state = directory / "state"
        self.log = directory / "agent.log"

    def start(self, timeout: float = 120.0) -> None:
        """Start it and wait until its first full sync is done. Raises AgentError if it ends before, TimeoutError."""
        self.launch()
        self.wait_ready(timeout)

    def launch(self) -> subprocess.Popen[str]:
        """Start it without waiting."""
        if self._process is not None:
            raise AgentError(f"{self.node}: the agent runs already")
        with self.log.open("a") as log:
            self._began = log.tell()
            self._process = self.spawn(*self.run_arguments(), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        return self._process

    def wait_ready(self, timeout: float = 120.0) -> None:
        """Wait until the first full sync of the agent that was launched is done. Raises AgentError if it ends before,
        TimeoutError."""

        def ready() -> bool:
            status = self._process.poll() if self._process else None
            if self._process is None or status is not None:
                self._process = None
                raise AgentError(f"{self.node}: the agent ended with status {status}: {self.said(self._began)}")
            return READY.search(self.said(self._began)) is not None

        wait_until(ready, timeout, f"the agent of {self.node} is ready")

    def run_arguments(self) -> list[str]:
        """The arguments of `bpfproxy run`."""
        cidrs = [word for cidr in self.cluster_cidrs for word in ("--cluster-cidr", cidr)]
        return [
            "run",
            *("--manifests", str(self.manifests)),
            *("--node-name", self.node),
            *cidrs,
            *("--cgroup", str(self.topology.node_cgroup(self.node))),
            *("--state-dir", str(self.state)),
            *("--loader", self.loader),
            *self.options,
        ]

    def spawn(self, *arguments: str, **streams: Any) -> subprocess.Popen[str]:
        """Start any `bpfproxy` command as a process of the node."""
        return spawn(
            [sys.executable, "-P", "-m", "bpfproxy", *arguments],  # -P: of `project`, not of the working directory
            namespace=self.topology.netns(self.node),
            cgroup=self.topology.spot_cgroup(self.node),
            lab_id=self.topology.lab_id,
            project=self.project,
            **streams,
        )

    @property
    def running(self) -> bool:
        """Whether its process is there."""
        return self._process is not None and self._process.poll() is None

    def said(self, offset: int = 0) -> str:
        """Its log from a byte offset on."""
        with self.log.open("rb") as log:
            log.seek(offset)
            return log.read().decode(errors="replace")

    def stop(self, timeout: float = 30.0) -> int | None:
        """SIGTERM: the datapath stays. Returns the exit status, None if it did not run; raises TimeoutError."""
        return self._end(signal.SIGTERM, timeout)

    def kill(self) -> None:
        """SIGKILL: the datapath stays."""
        self._end(signal.SIGKILL, 10.0)

    def _end(self, number: int, timeout: float) -> int | None:
        process, self._process = self._process, None
        if process is None:
            return None
        if process.poll() is None:
            os.kill(process.pid, number)
        try:
            return process.wait(timeout * PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise TimeoutError(f"the agent of {self.node} did not end within {timeout:g} s") from None

    def command(self, *arguments: str, timeout: float = 30.0) -> subprocess.CompletedProcess[str]:
        """Run any `bpfproxy` command on the node until it ends; its output and status."""
        process = self.spawn(*arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            output, errors = process.communicate(timeout=timeout * PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise
        return subprocess.CompletedProcess(process.args, process.returncode, output, errors)

    def look(self, *arguments: str) -> Any:
        """A command that looks at this node's datapath (`service list`, `stats`): its JSON. Raises AgentError."""
        done = self.command(*arguments, "--state-dir", str(self.state), "-o", "json")
        if done.returncode != 0:
            raise AgentError(f"{self.node}: {' '.join(arguments)}: status {done.returncode}: {done.stderr}")
        return json.loads(done.stdout)

    def translations(self) -> Callable[[], Counter[str]]:
        """A reader of how often each hook has translated an address, by the datapath's own counters."""

        def read() -> Counter[str]:
            with open_view(self.state) as view:
                metrics = view.node().metrics
            return Counter(
                {
                    hook: sum(count.get(way, 0) for way in ("translated", "reused", "reply"))
                    for hook, count in metrics.items()
                }
            )

        return read

    def cleanup(self) -> subprocess.CompletedProcess[str]:
        """`bpfproxy cleanup` of this node."""
        return self.command("cleanup", "--state-dir", str(self.state))
