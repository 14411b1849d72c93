"""Manifests watched live with the real inotify: links, directories, and names that come and go."""

from __future__ import annotations

import asyncio
import os
import shutil
import threading
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from random import Random

import pytest

from bpfproxy.model.event import Update
from bpfproxy.sources import files, watch
from bpfproxy.sources.files import load_manifests
from bpfproxy.sources.manifest import Manifest, decode_manifest, key_of
from tests.unit.following import following, live, replace, service, services


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
