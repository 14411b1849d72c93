"""Manifests on disk read once, and the ledger of what is in force."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bpfproxy.errors import InputError
from bpfproxy.model.event import Object, ObjectKey
from bpfproxy.model.service import Service
from bpfproxy.sources import files
from bpfproxy.sources.files import load_manifests
from bpfproxy.sources.ledger import Ledger, Settled
from bpfproxy.sources.manifest import Manifest, decode_manifest, key_of
from tests.unit.following import BROKEN, service, services


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
