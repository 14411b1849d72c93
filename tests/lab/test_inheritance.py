"""What a new version takes over, on maps of two versions side by side."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from bpfproxy.datapath import abi, schema
from bpfproxy.datapath.maps import Map
from bpfproxy.model.frontend import Backend
from bpfproxy.proxiers.ebpf import codec
from bpfproxy.proxiers.ebpf.inheritance import FLOWS, SOCKETS, Former
from bpfproxy.proxiers.ebpf.proxier import EbpfProxier
from bpfproxy.proxiers.ebpf.snapshot import Maps
from tests.lab.conftest import NewMaps
from tests.lab.test_ebpf_tables import backend, plan, rows_of, sync
from tests.tables import proxier_over


@pytest.fixture
def top(state: Path) -> Path:
    """Where each version has a directory of pins."""
    return state / "bpf"


Generations = Callable[[str, int], tuple[Path, Maps]]


@pytest.fixture
def generation(top: Path, new_maps: NewMaps) -> Generations:
    """Makes the maps of a version, with room for so many flows."""
    return lambda name, flows: (top / name, new_maps(top / name, flows=flows))


def former(directory: Path, text: str | None = None) -> Former:
    record = directory.parent.parent / f"{directory.name}.h"
    if text != "":
        record.write_text(text or schema.written())
    return Former(directory, record)


def proxier(maps: Maps, ancestor: Former | None = None) -> EbpfProxier:
    return proxier_over(maps, grace_period=0.0, former=ancestor.ids() if ancestor else None)


def backends(maps: Maps) -> dict[Backend, tuple[int, int]]:
    """Those that are Serving: id and generation."""
    found = {}
    for key, value in maps["backends"].items():
        (number,) = codec.U32.unpack(key)
        one, number_of_use, serving = codec.decode_backend(value) if any(value[:20]) else (None, 0, False)
        if one is not None and serving:
            found[one] = (number, number_of_use)
    return found


def test_whoever_had_an_id_gets_it_again(generation: Generations) -> None:
    old_dir, old_maps = generation("maps-old", 64)
    old = proxier(old_maps)
    first = rows_of(old, plan("a", 1, (backend(1), backend(2))), plan("b", 2, (backend(3),)))
    assert sync(old, {}, first) == []
    # Id 1 or 2 has served another one before.
    second = rows_of(old, plan("a", 1, (backend(2), backend(4))), plan("b", 2, (backend(3),)))
    assert sync(old, first, second) == []
    third = rows_of(old, plan("a", 1, (backend(2), backend(4), backend(5))), plan("b", 2, (backend(3),)))
    assert sync(old, second, third) == []
    known = backends(old_maps)
    _, new_maps = generation("maps-new", 128)
    new = proxier(new_maps, former(old_dir))
    assert new.read() == {}
    # Backend 5 has gone meanwhile, 6 has come, and they come in another order.
    wanted = rows_of(
        new, plan("c", 3, (backend(6),)), plan("b", 2, (backend(3),)), plan("a", 1, (backend(4), backend(2)))
    )
    assert sync(new, {}, wanted) == []
    found = backends(new_maps)
    assert {one: found[one] for one in (backend(2), backend(3), backend(4))} == {
        one: known[one] for one in (backend(2), backend(3), backend(4))
    }
    assert found[backend(6)][0] not in {number for number, _ in known.values()}
    new.activate(complete=True)
    more = wanted | rows_of(new, plan("d", 4, tuple(backend(number) for number in range(10, 20))))
    assert sync(new, wanted, more) == []
    (number, use) = known[backend(5)]
    assert (number, use + 1) in backends(new_maps).values(), "the id of the one that went, for another use"


def test_frontends_keep_their_ids(generation: Generations) -> None:
    old_dir, old_maps = generation("maps-old", 64)
    old = proxier(old_maps)
    sync(old, {}, rows_of(old, plan("a", 1, (backend(1),)), plan("b", 2, (backend(1),))))
    _, new_maps = generation("maps-new", 128)
    new = proxier(new_maps, former(old_dir))
    sync(new, {}, rows_of(new, plan("b", 2, (backend(1),)), plan("a", 1, (backend(1),))))
    layout = abi.layout("struct frontend", "id")
    ids = [{key: layout.unpack(value) for key, value in maps["frontends4"].items()} for maps in (old_maps, new_maps)]
    assert ids[0] == ids[1]
    assert len(set(ids[0].values())) == 2


# ---- rows --------------------------------------------------------------------------------------------------------

PEER = abi.sizeof("struct tcp_peer")


def peer(number: int) -> tuple[bytes, bytes]:
    return number.to_bytes(8, "little"), bytes([number]) * PEER


def rows(map_: Map) -> dict[bytes, bytes]:
    return dict(map_.items())


def test_maps_that_are_the_same_are_shared(top: Path, generation: Generations) -> None:
    old_dir, old_maps = generation("maps-old", 64)
    new_dir = top / "maps-new"
    new_dir.mkdir()
    sizes = {name: map_.max_entries for name, map_ in old_maps.items()} | {"flows4": 1}
    former(old_dir).share(new_dir, (*SOCKETS, *FLOWS), sizes)
    assert {path.name for path in new_dir.iterdir()} == {*SOCKETS, *FLOWS} - {"flows4"}
    with Map.open(new_dir / "tcp_peers") as shared:
        assert shared.id == old_maps["tcp_peers"].id


def test_rows_are_copied_once_and_what_the_new_programs_write_stays(top: Path, generation: Generations) -> None:
    old_dir, old_maps = generation("maps-old", 64)
    new_dir, new_maps = generation("maps-new", 128)
    old, new = old_maps["tcp_peers"], new_maps["tcp_peers"]
    for number in (1, 2, 3):
        old.update(*peer(number))
    key, _ = peer(1)
    new.update(key, bytes(PEER))
    ancestor = former(old_dir)
    ancestor.copy(new_maps)
    assert rows(new) == {key: bytes(PEER), **dict(map(peer, (2, 3)))}
    # Before the programs change over, a socket is closed and one is opened; after it, another is closed.
    old.delete(peer(2)[0])
    old.update(*peer(4))
    new.delete(peer(3)[0])
    ancestor.copy(new_maps)
    assert rows(new) == {key: bytes(PEER), **dict(map(peer, (4,)))}
    ancestor.remove()
    assert not old_dir.exists()
    assert not (top.parent / "maps-old.h").exists()
    assert new_dir.exists()


def test_rows_of_another_layout_are_translated(generation: Generations) -> None:
    old_dir, old_maps = generation("maps-old", 64)
    _, new_maps = generation("maps-new", 128)
    # In the old version the two ends of a connection stood the other way round.
    text = schema.written().replace(
        "struct tcp_peer {\n\tstruct endpoint vip;\n\tstruct endpoint backend;\n};",
        "struct tcp_peer {\n\tstruct endpoint backend;\n\tstruct endpoint vip;\n};",
    )
    assert text != schema.written()
    half = PEER // 2
    # The last two bytes of an endpoint are padding.
    old_maps["tcp_peers"].update(peer(1)[0], b"b" * (half - 2) + bytes(2) + b"v" * (half - 2) + bytes(2))
    former(old_dir, text).copy(new_maps)
    assert rows(new_maps["tcp_peers"]) == {
        peer(1)[0]: b"v" * (half - 2) + bytes(2) + b"b" * (half - 2) + bytes(2),
    }


def test_what_finds_no_room_is_counted_and_told(generation: Generations, caplog: pytest.LogCaptureFixture) -> None:
    old_dir, old_maps = generation("maps-old", 64)
    _, new_maps = generation("maps-new", 64)
    for number in range(1, 6):
        old_maps["tcp_peers"].update(*peer(number))
    new = new_maps["tcp_peers"]
    small = Map.create("tcp_peers", new.shape._replace(max_entries=3))
    ancestor = former(old_dir)
    with small, caplog.at_level(logging.INFO):
        ancestor.copy({**new_maps, "tcp_peers": small})
        assert len(rows(small)) == 3
        ancestor.remove()
    said = [record.getMessage() for record in caplog.records]
    assert 'event=not_inherited maps=maps-old what=tcp_peers rows=2 reason="map is full"' in said
    assert "event=inherited maps=maps-old copied=3" in said


def test_maps_of_an_unknown_layout_are_left(
    top: Path, generation: Generations, caplog: pytest.LogCaptureFixture
) -> None:
    old_dir, old_maps = generation("maps-old", 64)
    new_dir = top / "maps-new"
    new_dir.mkdir()
    old_maps["tcp_peers"].update(*peer(1))
    unknown = former(old_dir, "")
    with caplog.at_level(logging.WARNING):
        assert unknown.ids().backends == {}
        unknown.share(new_dir, SOCKETS, {name: old_maps[name].max_entries for name in SOCKETS})
        assert list(new_dir.iterdir()) == []
        new_dir.rmdir()
        _, new_maps = generation("maps-new", 64)
        for _ in range(2):
            unknown.copy(new_maps)
    assert rows(new_maps["tcp_peers"]) == {}
    told = [record.getMessage() for record in caplog.records if "what=tcp_peers" in record.getMessage()]
    assert len(told) == 1, "once"
