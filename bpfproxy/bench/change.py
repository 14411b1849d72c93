"""One changed EndpointSlice: from the decoded object, and from the changed file, to the changed map."""

from __future__ import annotations

import gc
import random
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bpfproxy import api
from bpfproxy.bench.figures import Aim, Figure, figure
from bpfproxy.bench.ground import BenchError, Ground
from bpfproxy.bench.node import running
from bpfproxy.bench.objects import cluster, endpoints, list_file, name_of, service_file
from bpfproxy.model.address import format_endpoint
from bpfproxy.model.event import Update

NAME = "change"
AIM = Aim("≤", 1.0)
SIZES = (10, 1_000, 10_000)

_WORD = 8
"""Bytes of a set's row: the one that flips when a set changes."""


class NotSeenError(BenchError):
    """A change did not reach the maps."""


def measure(ground: Ground, *, quick: bool) -> Iterator[Figure]:
    """Milliseconds, for growing numbers of services."""
    sizes = SIZES[:1] if quick else SIZES
    for services in sizes:
        samples = _from_objects(ground, services, 50 if quick else 1_000)
        yield figure(NAME, f"changed object to map, {services:,} services", "ms", samples, AIM)
    for services in sizes:
        samples = _from_directory(ground, services, 5 if quick else 200)
        yield figure(NAME, f"changed file to map, {services:,} services in a file each (YAML)", "ms", samples)
    for services in sizes:
        samples = _from_list(ground, services, 3 if quick else 9)
        yield figure(NAME, f"changed file to map, {services:,} services in one file (JSON)", "ms", samples)


def _from_objects(ground: Ground, services: int, changes: int) -> list[float]:
    settings = ground.settings()
    samples = []
    with api.open_engine(settings) as engine:
        engine.update(Update(objects=cluster(services), complete=True))
        engine.sync()
        gc.collect()
        gc.freeze()  # as the agent does once it is ready
        for turn in range(1, changes + 1):
            index = random.randrange(services)
            update = Update(objects=(endpoints(index, turn=turn),))
            begin = time.perf_counter_ns()
            engine.update(update)
            report = engine.sync()
            samples.append((time.perf_counter_ns() - begin) / 1e6)
            if report.failures or report.ops != 1:
                raise NotSeenError(f"a changed EndpointSlice made {report.ops} ops and {len(report.failures)} failures")
        gc.unfreeze()
        last = endpoints(index, turn=changes)
        with api.open_view(settings.state_dir) as view:
            found = {frontend.service: frontend.backends for frontend in view.frontends()}
        if set(found[str(name_of(index))]) != {format_endpoint(each.address, 8080) for each in last.endpoints}:
            raise NotSeenError(f"the maps hold {found[str(name_of(index))]} for {name_of(index)}")
    api.cleanup(settings.state_dir)
    return samples


def _from_directory(ground: Ground, services: int, changes: int) -> list[float]:
    directory = ground.directory / f"files-{services}"
    directory.mkdir()
    for index in range(services):
        (directory / f"{index}.yaml").write_text(service_file(index))

    def change(turn: int) -> tuple[Path, str]:
        index = random.randrange(services)
        return directory / f"{index}.yaml", service_file(index, turn)

    return _from_files(ground, directory, services, changes, change)


def _from_list(ground: Ground, services: int, changes: int) -> list[float]:
    path = ground.directory / f"list-{services}.json"
    path.write_text(list_file(services))
    return _from_files(ground, path, services, changes, lambda turn: (path, list_file(services, services // 2, turn)))


def _from_files(
    ground: Ground, manifests: Path, services: int, changes: int, change: Callable[[int], tuple[Path, str]]
) -> list[float]:
    """An agent on `manifests`, and changes of whole files: (path, new content) of each turn from 1 on."""
    fresh = ground.directory / "fresh"
    samples = []
    state = ground.settings().state_dir
    with running(ground, manifests, "prebuilt", state), _watching(ground, state, services) as watch:
        for turn in range(1, changes + 1):
            path, text = change(turn)
            fresh.write_text(text)
            watch.arm()
            begin = time.monotonic_ns()
            fresh.replace(path)
            samples.append((watch.moment() - begin) / 1e6)
    api.cleanup(state)
    return samples


class Watch:
    """The process that watch.c describes, on the words of all sets."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdin
        assert process.stdout
        self._in, self._out = process.stdin, process.stdout

    def arm(self) -> None:
        """From now on it looks for a change."""
        print(file=self._in, flush=True)
        if self._out.readline() != "armed\n":
            raise NotSeenError("the process that watches the map ended")

    def moment(self) -> int:
        """When the change was seen, nanoseconds of the monotonic clock."""
        moment = int(self._out.readline() or 0)
        if not moment:
            raise NotSeenError("a changed file did not change the map")
        return moment


@contextmanager
def _watching(ground: Ground, state: Path, services: int) -> Iterator[Watch]:
    [words] = (state / "bpf").glob("maps-*/sets")
    command = [str(ground.compile("watch")), str(words), str(_WORD * (services + 8))]
    process = ground.spawn(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        yield Watch(process)
    finally:
        process.kill()
        process.communicate()
