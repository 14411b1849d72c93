"""Manifests watched live with the real inotify: contents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bpfproxy.model.event import Update
from bpfproxy.model.service import Service
from bpfproxy.sources import files
from bpfproxy.sources.manifest import key_of
from tests.unit.following import BROKEN, Follower, following, live, replace, service, services


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
