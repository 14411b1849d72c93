"""Manifests on disk: read once, and watched live with the real inotify."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bpfproxy.errors import InputError
from bpfproxy.model.event import Object, ObjectKey, Update
from bpfproxy.model.service import Service
from bpfproxy.sources import files, watch
from bpfproxy.sources.files import FilesSource, load_manifests
from bpfproxy.sources.ledger import Ledger, Settled
from bpfproxy.sources.manifest import Manifest, decode_manifest, key_of

DEADLINE = 10.0


def service(name: str, *, node_port: int = 0, port: int = 80) -> str:
    ports = [{"port": port, "nodePort": node_port}]
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name},
            "spec": {"type": "NodePort", "ports": ports},
        }
    )


def services(*names: str) -> str:
    return "\n---\n".join(map(service, names))


BROKEN = "kind: [\n"


# ---- read once ---------------------------------------------------------------------------------------------------


def names_of(objects: tuple[Object, ...]) -> list[str]:
    return sorted(str(key_of(item).name) for item in objects)


def test_load_files_and_directories(tmp_path: Path) -> None:
    directory = tmp_path / "d"
    (directory / "sub.yaml").mkdir(parents=True)
    (directory / "sub.yaml" / "no.yaml").write_text(service("no"))
    for name, text in {
        "b.yaml": services("b", "b2"),
        "a.yml": service("a"),
        "c.json": service("c"),
        ".hidden.yaml": service("no"),
        "c.yaml~": service("no"),
        "README.md": BROKEN,
    }.items():
        (directory / name).write_text(text)
    single = tmp_path / "other.txt"
    single.write_text(service("single"))
    expected = ["default/a", "default/b", "default/b2", "default/c", "default/single"]
    assert names_of(load_manifests([directory, single])) == expected
    assert load_manifests([]) == ()
    assert load_manifests([tmp_path / "d" / "sub.yaml" / ".."]) != ()


def test_load_reads_a_pipe() -> None:
    reader, writer = os.pipe()
    os.write(writer, service("piped").encode())
    os.close(writer)
    try:
        assert names_of(load_manifests([Path(f"/dev/fd/{reader}")])) == ["default/piped"]
    finally:
        os.close(reader)


def test_load_tells_all_faults(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(services("x") + "\n---\n" + service("np", node_port=30080))
    (tmp_path / "b.yaml").write_text(services("y", "x"))
    (tmp_path / "c.yaml").write_text(service("z", node_port=30080))
    (tmp_path / "d.yaml").write_text(BROKEN)
    (tmp_path / "e.yaml").symlink_to("nowhere")
    with pytest.raises(InputError) as caught:
        load_manifests([tmp_path, tmp_path / "missing"])
    assert str(caught.value).splitlines() == [
        f"{tmp_path}/d.yaml: document 1: line 2, column 1: did not find expected node content",
        f"{tmp_path}/e.yaml: No such file or directory",
        f"{tmp_path}/missing: No such file or directory",
        f"{tmp_path}/b.yaml: document 2: Service default/x: metadata.name: expected each object once, it stands already"
        f" in {tmp_path}/a.yaml: document 1",
        f"{tmp_path}/c.yaml: document 1: Service default/z: spec.ports[0].nodePort: expected one of its own, 30080/TCP"
        f" is already that of Service default/np in {tmp_path}/a.yaml: document 2",
    ]


def test_load_refuses_what_is_too_big(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_SIZE", 1 << 20)
    path = tmp_path / "a.yaml"
    path.write_bytes(b"#" * ((1 << 20) + 1))
    with pytest.raises(InputError, match=r"a\.yaml: expected at most 1 MiB"):
        load_manifests([path])
    with pytest.raises(InputError, match=r"zero: expected at most 1 MiB"):
        load_manifests([Path("/dev/zero")])


# ---- the ledger --------------------------------------------------------------------------------------------------


def manifest(path: str, **node_ports: int) -> Manifest:
    return decode_manifest("\n---\n".join(service(n, node_port=p) for n, p in node_ports.items()).encode(), path)


def in_force(ledger: Ledger) -> dict[str, list[str]]:
    return {path: sorted(key.name.name for key in found.objects) for path, found in sorted(ledger.in_force.items())}


def test_ledger_lets_files_hand_over_claims_together() -> None:
    ledger = Ledger()
    ledger.settle({"a": manifest("a", x=30001), "b": manifest("b", y=30002)})
    swapped = ledger.settle({"a": manifest("a", y=30002), "b": manifest("b", x=30001)})
    assert swapped == Settled((), (), {})
    assert in_force(ledger) == {"a": ["y"], "b": ["x"]}


def test_ledger_keeps_the_holder_and_lets_the_other_wait() -> None:
    ledger = Ledger()
    ledger.settle({"b": manifest("b", y=30001)})
    settled = ledger.settle({"a": manifest("a", x=30001), "b": manifest("b", y=30001, z=30002)})
    assert in_force(ledger) == {"b": ["y", "z"]}
    assert [key.name.name for key in map(key_of, settled.objects)] == ["z"]
    assert list(settled.clashes) == ["a"]
    settled = ledger.settle({"b": manifest("b", z=30002)})
    assert in_force(ledger) == {"a": ["x"], "b": ["z"]}
    assert settled.clashes == {}
    assert [key.name.name for key in settled.removed] == ["y"]


def test_ledger_falls_back_to_what_was_in_force() -> None:
    ledger = Ledger()
    ledger.settle({"a": manifest("a", x=30001), "b": manifest("b", y=30002), "c": manifest("c", z=30003)})
    # b wants c's port, so it keeps 30002, so a cannot have that and keeps 30001.
    settled = ledger.settle({"a": manifest("a", x=30002), "b": manifest("b", y=30003)})
    assert sorted(settled.clashes) == ["a", "b"]
    assert settled.objects == ()
    settled = ledger.settle({"c": None})
    assert settled.clashes == {}
    ports = {item.name.name: item.ports[0].node_port for item in settled.objects if isinstance(item, Service)}
    assert ports == {"x": 30002, "y": 30003}


_contents = st.none() | st.dictionaries(
    st.sampled_from(["x", "y", "z"]), st.sampled_from([30001, 30002, 30003]), min_size=0, max_size=3
)


@given(st.lists(st.dictionaries(st.sampled_from("abc"), _contents, min_size=1), max_size=12))
@settings(max_examples=300, deadline=None)
def test_ledger_is_always_consistent(batches: list[dict[str, dict[str, int] | None]]) -> None:
    ledger = Ledger()
    shown: dict[ObjectKey, Object] = {}
    for batch in batches:
        fresh: dict[str, Manifest | None] = {}
        refused = []
        for path, content in batch.items():
            if content is None:
                fresh[path] = None
            elif len(set(content.values())) < len(content):
                refused.append(path)  # clashes in itself
            else:
                fresh[path] = manifest(path, **content)
        settled = ledger.settle(fresh, refused)
        for item in settled.objects:
            shown[key_of(item)] = item
        for key in settled.removed:
            del shown[key]
        claims = [claim for found in ledger.in_force.values() for claim in found.claims]
        assert len(claims) == len(set(claims))
        assert shown == {key: item for found in ledger.in_force.values() for key, item in found.objects.items()}
        assert settled.clashes.keys() == ledger.waiting.keys()
        for path, new in fresh.items():
            assert path in ledger.waiting or ledger.in_force.get(path) == new


# ---- live --------------------------------------------------------------------------------------------------------


class Follower:
    """What a running source has delivered so far."""

    def __init__(self) -> None:
        self.objects: dict[ObjectKey, Object] = {}
        self.updates: list[Update] = []
        self.errors: list[str] = []
        self._news = asyncio.Event()

    def sink(self, update: Update) -> None:
        self.updates.append(update)
        for item in update.objects:
            self.objects[key_of(item)] = item
        for key in update.removed:
            del self.objects[key]
        self._news.set()

    def on_error(self, error: InputError) -> None:
        assert "\n" not in str(error)
        self.errors.append(str(error))
        self._news.set()

    @property
    def names(self) -> list[str]:
        return sorted(key.name.name for key in self.objects)

    def complete(self) -> bool:
        return self.updates[-1].complete

    async def until(self, condition: Callable[[], bool]) -> None:
        try:
            async with asyncio.timeout(DEADLINE):
                while not condition():
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            pytest.fail(f"still {self.names}, updates {self.updates}, errors {self.errors}")

    async def shows(self, *names: str) -> None:
        await self.until(lambda: bool(self.updates) and self.names == sorted(names))


@contextlib.asynccontextmanager
async def following(*paths: Path) -> AsyncIterator[Follower]:
    follower = Follower()
    task = asyncio.create_task(FilesSource(paths, follower.on_error).run(follower.sink))
    try:
        await follower.until(lambda: bool(follower.updates) or task.done())
        yield follower
        assert not task.done()
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def live(test: Callable[[Path], Awaitable[None]]) -> Callable[[Path], None]:
    """A test that is a coroutine, on an event loop of its own."""

    def run(tmp_path: Path) -> None:
        asyncio.run(asyncio.wait_for(test(tmp_path), 60))

    run.__name__ = test.__name__
    return run


def replace(path: Path, text: str) -> None:
    """As careful programs write: a temporary file beside it, then a rename."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    temporary.rename(path)


@live
async def test_first_list_then_changes(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(services("a", "b"))
    (tmp_path / "c.json").write_text(service("c"))
    async with following(tmp_path) as seen:
        assert len(seen.updates) == 1
        assert seen.complete()
        assert seen.names == ["a", "b", "c"]
        (tmp_path / "d.yaml").write_text(service("d"))
        await seen.shows("a", "b", "c", "d")
        (tmp_path / "a.yaml").write_text(services("a", "e"))
        await seen.shows("a", "c", "d", "e")
        last = seen.updates[-1]
        assert [key_of(item).name.name for item in last.objects] == ["e"]
        assert [key.name.name for key in last.removed] == ["b"]
        replace(tmp_path / "c.json", service("c2"))
        await seen.shows("a", "c2", "d", "e")
        (tmp_path / "a.yaml").unlink()
        await seen.shows("c2", "d")
        (tmp_path / "d.yaml").rename(tmp_path / "d.off")
        await seen.shows("c2")
        (tmp_path / "d.off").rename(tmp_path / "x.yaml")
        await seen.shows("c2", "d")
        assert seen.errors == []
        assert all(update.complete for update in seen.updates)


@live
async def test_an_empty_directory_is_complete(tmp_path: Path) -> None:
    async with following(tmp_path) as seen:
        assert seen.updates == [Update(complete=True)]


@live
async def test_a_write_without_a_change_is_no_update(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(service("a"))
    async with following(tmp_path) as seen:
        path.write_text(service("a"))
        path.touch()
        path.write_text("# said otherwise\n" + service("a"))
        (tmp_path / "b.yaml").write_text(service("b"))
        await seen.shows("a", "b")
        assert len(seen.updates) == 2


@live
async def test_only_changed_files_are_read_again(tmp_path: Path) -> None:
    for number in range(50):
        (tmp_path / f"{number}.yaml").write_text(service(f"s{number}"))
    read: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        original = files._read

        def spy(path: str, **rest: Any) -> bytes | None:
            read.append(path)
            return original(path, **rest)

        patch.setattr(files, "_read", spy)
        async with following(tmp_path) as seen:
            assert len(read) == 50
            read.clear()
            (tmp_path / "7.yaml").write_text(service("new"))
            await seen.until(lambda: "new" in seen.names)
            assert set(read) == {f"{tmp_path}/7.yaml"}


@live
async def test_a_refused_file_keeps_its_objects_until_it_is_repaired(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(services("a", "b"))
    async with following(tmp_path) as seen:
        path.write_text(services("a", "new") + "\n---\n" + service("bad", port=99999))
        await seen.until(lambda: bool(seen.errors))
        assert seen.errors == [
            f"{path}: document 3: Service default/bad: spec.ports[0].port: expected a number in 1..65535, not 99999"
        ]
        path.touch()
        (tmp_path / "c.yaml").write_text(service("c"))
        await seen.shows("a", "b", "c")
        assert len(seen.errors) == 1, "told once"
        assert seen.complete(), "it was read once"
        path.write_text(BROKEN)
        await seen.until(lambda: len(seen.errors) == 2)
        path.write_text(services("a", "new"))
        await seen.shows("a", "c", "new")
        path.write_text(BROKEN)
        await seen.until(lambda: len(seen.errors) == 3)
        assert seen.errors[1] == seen.errors[2], "told again after a repair"
        path.unlink()
        await seen.shows("c")


@live
async def test_not_complete_until_every_file_was_read(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(service("a"))
    (tmp_path / "b.yaml").write_text(BROKEN)
    (tmp_path / "c.yaml").write_text(BROKEN)
    async with following(tmp_path) as seen:
        assert seen.names == ["a"]
        assert not seen.complete()
        assert len(seen.errors) == 2
        (tmp_path / "a.yaml").write_text(service("a2"))
        await seen.shows("a2")
        assert not seen.complete()
        (tmp_path / "b.yaml").write_text("# nothing")
        (tmp_path / "c.yaml").unlink()
        await seen.until(seen.complete)
        assert seen.updates[-1] == Update(complete=True)


@live
async def test_a_clash_is_resolved_by_the_other_file(tmp_path: Path) -> None:
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text(service("a", node_port=30080))
    second.write_text(service("b", node_port=30080))
    async with following(tmp_path) as seen:
        assert seen.names == ["a"]
        assert not seen.complete()
        assert len(seen.errors) == 1
        assert seen.errors[0].startswith(f"{second}: document 1: Service default/b: spec.ports[0].nodePort: ")
        assert f"in {first}: document 1" in seen.errors[0]
        first.write_text(service("a", node_port=30081))
        await seen.shows("a", "b")
        assert seen.complete()
        (tmp_path / "c.yaml").write_text(service("b", node_port=30082))
        await seen.until(lambda: len(seen.errors) == 2)
        assert "expected each object once" in seen.errors[1]
        second.unlink()
        await seen.until(lambda: any(item.ports[0].node_port == 30082 for item in all_services(seen)))
        assert seen.names == ["a", "b"]


def all_services(seen: Follower) -> list[Service]:
    return [item for item in seen.objects.values() if isinstance(item, Service)]


@live
async def test_kubernetes_volume(tmp_path: Path) -> None:
    """A ConfigMap's mount: files are links through ..data, which is swapped whole."""

    def publish(version: str, contents: dict[str, str]) -> None:
        target = tmp_path / f"..{version}"
        target.mkdir()
        for name, text in contents.items():
            (target / name).write_text(text)
        (tmp_path / "..data_tmp").symlink_to(target.name)
        (tmp_path / "..data_tmp").rename(tmp_path / "..data")
        for name in contents:
            if not (tmp_path / name).is_symlink():
                (tmp_path / name).symlink_to(f"..data/{name}")
        for entry in tmp_path.iterdir():
            if entry.is_symlink() and not entry.exists():
                entry.unlink()
        for old in tmp_path.glob("..v*"):
            if old != target:
                shutil.rmtree(old)

    publish("v1", {"a.yaml": service("a1"), "b.yaml": service("b1")})
    async with following(tmp_path) as seen:
        assert seen.names == ["a1", "b1"]
        for number in range(2, 6):
            publish(f"v{number}", {"a.yaml": service(f"a{number}"), "b.yaml": service("b1")})
            await seen.shows(f"a{number}", "b1")
        publish("v6", {"b.yaml": service("b6"), "c.yaml": service("c6")})
        await seen.shows("b6", "c6")
        assert seen.errors == []
        assert seen.complete()


@live
async def test_links(tmp_path: Path) -> None:
    outside, watched = tmp_path / "outside", tmp_path / "watched"
    outside.mkdir()
    watched.mkdir()
    (outside / "one").write_text(service("one"))
    (watched / "a.yaml").symlink_to("../outside/one")
    (watched / "dangling.yaml").symlink_to(outside / "two")
    (watched / "loop.yaml").symlink_to("loop.yaml")
    async with following(watched) as seen:
        assert seen.names == ["one"]
        assert not seen.complete()
        assert seen.errors == [f"{watched}/loop.yaml: Too many levels of symbolic links"]
        (outside / "one").write_text(service("written"))
        await seen.shows("written")
        (outside / "two").write_text(service("two"))
        await seen.shows("written", "two")
        replace(outside / "two", service("replaced"))
        await seen.shows("written", "replaced")
        (watched / "loop.yaml").unlink()
        await seen.until(seen.complete)
        os.link(outside / "one", watched / "hard.yaml")
        await seen.until(lambda: len(seen.errors) == 2)
        assert "expected each object once" in seen.errors[1]
        (watched / "a.yaml").unlink()
        shutil.rmtree(outside)
        await seen.shows("written")


@live
async def test_a_directory_that_is_not_there_yet(tmp_path: Path) -> None:
    directory = tmp_path / "x" / "y" / "z"
    async with following(directory) as seen:
        assert seen.updates == [Update(complete=False)]
        assert seen.errors == [f"{directory}: {watch.MISSING}"]
        (tmp_path / "x").mkdir()
        (tmp_path / "x" / "y").mkdir()
        (tmp_path / "unrelated").mkdir()
        directory.mkdir()
        await seen.until(seen.complete)
        (directory / "a.yaml").write_text(service("a"))
        await seen.shows("a")


@live
async def test_a_directory_that_goes_and_comes_back(tmp_path: Path) -> None:
    directory = tmp_path / "up" / "d"
    directory.mkdir(parents=True)
    (directory / "a.yaml").write_text(service("a"))
    async with following(directory) as seen:
        shutil.rmtree(directory)
        await seen.shows()
        assert seen.errors == [f"{directory}: {watch.MISSING}"]
        directory.mkdir()
        (directory / "b.yaml").write_text(service("b"))
        await seen.shows("b")
        (tmp_path / "up").rename(tmp_path / "away")
        await seen.shows()
        (tmp_path / "away").rename(tmp_path / "up")
        await seen.shows("b")
        (directory / "b.yaml").write_text(service("c"))
        await seen.shows("c")
        assert len(seen.errors) == 2


@live
async def test_a_directory_link_that_is_switched(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.yaml").write_text(service(name))
    link = tmp_path / "current"
    link.symlink_to("one")
    async with following(link) as seen:
        assert seen.names == ["one"]
        (tmp_path / "next").symlink_to("two")
        (tmp_path / "next").rename(link)
        await seen.shows("two")
        (tmp_path / "two" / "a.yaml").write_text(service("three"))
        await seen.shows("three")
        (tmp_path / "one" / "a.yaml").write_text(service("old"))
        (tmp_path / "two" / "b.yaml").write_text(service("four"))
        await seen.shows("three", "four")
        assert seen.errors == []


@live
async def test_a_single_file(tmp_path: Path) -> None:
    path, other = tmp_path / "manifest", tmp_path / "other"
    other.mkdir()
    async with following(path, other) as seen:
        assert not seen.complete()
        with path.open("w") as file:
            file.write(services("a"))
            file.flush()
            (other / "mark.yaml").write_text("# comes after what happened so far\n" + service("mark"))
            await seen.shows("mark")
            assert not seen.complete(), "not before the writer is done"
            file.write("\n---\n" + service("b"))
        await seen.until(seen.complete)
        assert seen.names == ["a", "b", "mark"]
        (other / "mark.yaml").unlink()
        await seen.shows("a", "b")
        replace(path, service("c"))
        await seen.shows("c")
        path.unlink()
        await seen.shows()
        assert seen.errors == [f"{path}: {watch.MISSING}"] * 2
        path.write_text(service("d"))
        await seen.shows("d")
        path.unlink()
        path.mkdir()
        (path / "e.yaml").write_text(service("e"))
        await seen.shows("e")


@live
async def test_half_written_files_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(services("a", "b"))
    async with following(tmp_path) as seen:
        with path.open("w") as file:
            file.write(service("a"))
            file.flush()
            (tmp_path / "z.yaml").write_text(service("z"))
            await seen.shows("a", "b", "z")
            file.write("\n---\n" + service("c"))
        await seen.shows("a", "c", "z")
        with (tmp_path / "new.yaml").open("w") as file:
            file.write(service("new"))
            file.flush()
            (tmp_path / "z.yaml").write_text(service("z2"))
            await seen.shows("a", "c", "z2")
        await seen.shows("a", "c", "z2", "new")


@live
async def test_editors_that_move_the_file_aside(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(services("a", "b"))
    async with following(tmp_path) as seen:
        for number in range(20):
            path.rename(tmp_path / "a.yaml~")
            path.write_text(services("a", f"b{number}"))
            (tmp_path / "a.yaml~").unlink()
            await seen.shows("a", f"b{number}")
        assert all(key.name.name != "a" for update in seen.updates for key in update.removed)


@live
async def test_what_is_no_file_is_no_manifest(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    async with following(tmp_path) as seen:
        assert seen.complete()
        os.mkfifo(tmp_path / "pipe2.yaml")
        (tmp_path / "directory.yaml").mkdir()
        (tmp_path / "a.yaml").write_text(service("a"))
        await seen.shows("a")
        assert seen.complete()
        assert seen.errors == []


@live
async def test_overflow_is_followed_by_a_scan(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(service("a"))
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    if limit > 100_000:
        pytest.fail(f"too many events for this test: fs.inotify.max_queued_events is {limit}")
    async with following(tmp_path) as seen:
        one, other = tmp_path / "x", tmp_path / "y"
        one.touch()
        for _ in range(limit // 2 + 1):  # without giving the source a chance to look
            one.rename(other)
            other.rename(one)
        (tmp_path / "b.yaml").write_text(service("b"))
        (tmp_path / "a.yaml").unlink()
        await seen.shows("b")
        (tmp_path / "c.yaml").write_text(service("c"))
        await seen.shows("b", "c")


@live
async def test_big_files_are_read_in_a_worker_thread(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    threads: list[bool] = []
    with pytest.MonkeyPatch.context() as patch:

        def spy(data: bytes, path: str) -> Manifest:
            threads.append(threading.current_thread() is threading.main_thread())
            return decode_manifest(data, path)

        patch.setattr(files, "decode_manifest", spy)
        path.write_text(service("a"))
        async with following(tmp_path) as seen:
            replace(path, services(*(f"s{number}" for number in range(1000))))
            await seen.until(lambda: len(seen.names) == 1000)
    assert threads == [True, False]


@live
async def test_no_descriptor_is_left(tmp_path: Path) -> None:
    before = set(Path("/proc/self/fd").iterdir())
    for _ in range(5):
        async with following(tmp_path):
            pass
    assert len(set(Path("/proc/self/fd").iterdir()) - before) <= 1


def _disturb(root: Path, random: Random, serial: Iterator[int]) -> None:
    """One random thing that happens to a watched directory `root`/d or to what its links lead to."""
    directory, store = root / "d", root / "store"
    file, link, target = (
        place / f"{random.randrange(4)}{end}"
        for place, end in ((directory, ".yaml"), (directory, ".json"), (store, ".json"))
    )
    text = services(f"s{next(serial)}", f"s{next(serial)}")
    match random.choice(
        ["write", "write", "replace", "unlink", "rename", "link", "store", "unstore", "swap", "remove"]
    ):
        case "write":
            file.write_text(text)
        case "replace":
            replace(file, text)
        case "unlink":
            file.unlink(missing_ok=True)
        case "rename" if file.exists():
            file.rename(directory / f"{random.randrange(4)}.yaml")
        case "link" if not link.is_symlink():
            link.symlink_to(random.choice(["../store/", f"{store}/"]) + link.name)
        case "link":
            link.unlink()
        case "store":
            if random.random() < 0.5:
                target.write_text(service(f"s{next(serial)}"))
            else:
                replace(target, service(f"s{next(serial)}"))
        case "unstore":
            target.unlink(missing_ok=True)
        case "swap":
            directory.rename(root / "aside")
            (root / "aside").rename(directory)
        case "remove" if random.random() < 0.3:
            shutil.rmtree(directory)
            directory.mkdir()


@pytest.mark.parametrize("seed", range(4))
def test_whatever_happens_the_source_ends_with_what_is_there(tmp_path: Path, seed: int) -> None:
    async def scenario() -> None:
        random, serial = Random(seed), count()
        (tmp_path / "d").mkdir()
        (tmp_path / "store").mkdir()
        async with following(tmp_path / "d") as seen:
            for _ in range(15):
                for _ in range(random.randrange(1, 25)):
                    _disturb(tmp_path, random, serial)
                    if random.random() < 0.5:
                        await asyncio.sleep(0)
                for link in (tmp_path / "d").glob("*.json"):
                    if not link.exists():
                        link.unlink()
                expected = {key_of(item): item for item in load_manifests([tmp_path / "d"])}
                await seen.until(lambda expected=expected: seen.objects == expected)  # type: ignore[misc]
            assert [error for error in seen.errors if "expected each object once" not in error] == []

    asyncio.run(asyncio.wait_for(scenario(), 60))
