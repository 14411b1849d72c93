"""Start of the agent to ready, and its memory, under each loader."""

from __future__ import annotations

import importlib.util
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from bpfproxy import api
from bpfproxy.bench.figures import Aim, Figure, figure
from bpfproxy.bench.ground import Ground
from bpfproxy.bench.node import Memory, running
from bpfproxy.bench.objects import list_file
from bpfproxy.lab.place import PROJECT

NAME = "start"
AIM = Aim("≤", 60)
MANY = 10_000


def measure(ground: Ground, *, quick: bool) -> Iterator[Figure]:
    """The agent on examples/ and, unless `quick`, on 10,000 services in one JSON file."""
    loaders = _loaders()
    yield from _starts(ground, loaders, PROJECT / "examples", "examples", 1 if quick else 7, AIM)
    if not quick:
        manifests = ground.directory / "start.json"
        manifests.write_text(list_file(MANY))
        yield from _starts(ground, loaders, manifests, f"{MANY:,} services", 3, None)


def _loaders() -> Sequence[str]:
    if importlib.util.find_spec("bcc"):
        return "prebuilt", "bcc"
    print("bcc is not installed: the agent is measured under the prebuilt object alone", file=sys.stderr)
    return ("prebuilt",)


def _starts(
    ground: Ground, loaders: Sequence[str], manifests: Path, title: str, rounds: int, aim: Aim | None
) -> Iterator[Figure]:
    first: dict[str, list[float]] = defaultdict(list)
    again: dict[str, list[float]] = defaultdict(list)
    memory: dict[str, list[Memory]] = defaultdict(list)
    for _ in range(rounds):
        for loader in loaders:
            state = ground.settings().state_dir
            with running(ground, manifests, loader, state) as agent:
                first[loader].append(agent.seconds)
                memory[loader].append(agent.memory())
            with running(ground, manifests, loader, state) as agent:
                again[loader].append(agent.seconds)
            api.cleanup(state)
    for loader in loaders:
        what = f"{title}, {loader}"
        yield figure(NAME, f"start to ready: {what}", "s", first[loader])
        yield figure(NAME, f"restart to ready: {what}", "s", again[loader])
        yield figure(NAME, f"resident memory: {what}", "MiB", [m.rss for m in memory[loader]], aim)
        yield figure(NAME, f"… of it anonymous: {what}", "MiB", [m.anonymous for m in memory[loader]])
