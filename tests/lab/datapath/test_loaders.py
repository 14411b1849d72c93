"""Both loaders, on the real tree and on trees that compiler or kernel refuse."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from bpfproxy.config import LoaderName
from bpfproxy.datapath import abi, bpffs, libbpf, loader
from bpfproxy.datapath.files import c_tree
from bpfproxy.datapath.loader import LoadError, LoadSpec, maps_version
from bpfproxy.errors import UnsupportedError

LOADERS: tuple[LoaderName, ...] = ("bcc", "prebuilt")
Specs = Callable[..., LoadSpec]
Edit = Callable[[str], str]
Trees = Callable[[Edit], None]

BAD_READ = "int verdict = *(volatile int *)((char *)ctx + 4000);"
"""Beyond the end of the context, which the compiler cannot know."""

HOOKS = {
    "bp_connect4": "cgroup_inet4_connect",
    "bp_connect6": "cgroup_inet6_connect",
    "bp_sendmsg4": "cgroup_udp4_sendmsg",
    "bp_sendmsg6": "cgroup_udp6_sendmsg",
    "bp_recvmsg4": "cgroup_udp4_recvmsg",
    "bp_recvmsg6": "cgroup_udp6_recvmsg",
    "bp_getpeername4": "cgroup_inet4_getpeername",
    "bp_getpeername6": "cgroup_inet6_getpeername",
    "bp_post_bind4": "cgroup_inet4_post_bind",
    "bp_post_bind6": "cgroup_inet6_post_bind",
    "bp_sock_release": "cgroup_inet_sock_release",
}


@pytest.fixture(params=LOADERS)
def name(request: pytest.FixtureRequest) -> LoaderName:
    found: LoaderName = request.param
    return found


@pytest.fixture
def trees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trees:
    """Makes the loaders use a copy of the C tree whose main file is edited, compiled for the prebuilt one, too."""

    def make(edit: Edit) -> None:
        tree = tmp_path / "tree"
        shutil.copytree(c_tree(), tree)
        source = tree / "sock_lb.bpf.c"
        source.write_text(edit(source.read_text()))
        monkeypatch.setattr("bpfproxy.datapath.loader.bcc.c_tree", lambda: tree)
        target = tmp_path / "sock_lb.bpf.o"
        headers = f"/usr/include/{sysconfig.get_config_var('MULTIARCH')}"
        flags = ["-O2", "-g", "-target", "bpf", "-mcpu=v2", "-idirafter", headers]
        command = ["clang", *flags, "-c", str(source), "-o", str(target)]
        subprocess.run(command, check=False, capture_output=True)
        monkeypatch.setattr("bpfproxy.datapath.loader.prebuilt.built", lambda _: target)

    return make


def descriptors() -> set[str]:
    return {entry.name for entry in Path("/proc/self/fd").iterdir()}


def test_loads_every_hook_and_pins_every_map(specs: Specs, name: LoaderName) -> None:
    spec = specs(frontends4=100)
    with loader.load(spec, name) as loaded:
        assert loaded.loader == name
        found = {program.name: libbpf.attach_type_name(program.attach_type) for program in loaded.programs.values()}
        assert found == HOOKS
        for program in loaded.programs.values():
            assert libbpf.text(libbpf.info(program.fd, "prog").name) == program.name[:15]
        assert loaded.maps.keys() == {path.name for path in spec.pin_dir.iterdir()} >= set(spec.sizes)
        assert loaded.maps["frontends4"].shape.max_entries == 100
        assert loaded.maps["sockets"].shape.value_size == abi.sizeof("struct socket_state")


def test_leaves_no_descriptor(specs: Specs, name: LoaderName) -> None:
    spec = specs()
    loader.load(spec, name).close()  # what is opened once for good
    before = descriptors()
    loaded = loader.load(spec, name)
    assert len(descriptors()) == len(before) + len(loaded.programs) + len(loaded.maps)
    loaded.close()
    assert descriptors() == before


@pytest.mark.parametrize("first", LOADERS)
@pytest.mark.parametrize("second", LOADERS)
def test_either_goes_on_with_the_maps_of_the_other(specs: Specs, first: LoaderName, second: LoaderName) -> None:
    spec = specs()
    key, value = bytes(16), (1).to_bytes(4, sys.byteorder)
    with loader.load(spec, first) as before:
        before.maps["node_addresses"].update(key, value)
        with loader.load(spec, second) as after:
            assert {n: m.id for n, m in after.maps.items()} == {n: m.id for n, m in before.maps.items()}
            assert after.maps["node_addresses"].lookup(key) == value
            # The programs, too, hold these very maps.
            assert before.maps["node_addresses"].id in map_ids(after.programs["bp_connect4"].fd)


def map_ids(program: int) -> list[int]:
    """Ids of the maps that a loaded program refers to."""
    ids = libbpf.ffi.new("uint32_t[64]")
    info = libbpf.ffi.new("struct bpf_prog_info *")
    info.nr_map_ids, info.map_ids = len(ids), int(libbpf.ffi.cast("uintptr_t", ids))
    size = libbpf.ffi.new("uint32_t *", libbpf.ffi.sizeof("struct bpf_prog_info"))
    libbpf.check(libbpf.lib().bpf_obj_get_info_by_fd(program, info, size), "info")
    return list(ids[0 : info.nr_map_ids])


def test_a_map_of_another_shape_is_refused(specs: Specs, name: LoaderName) -> None:
    loader.load(specs(), "prebuilt").close()
    spec = specs(frontends4=65)
    wanted = (
        f"the map pinned at {spec.pin_dir}/frontends4 is hash, key 8 B, .*, 64 rows, .*; needed is hash, .*, 65 rows"
    )
    with pytest.raises(LoadError, match=wanted):
        loader.load(spec, name)


def test_paths_with_characters_that_mean_something(specs: Specs, state: Path, name: LoaderName) -> None:
    pin_dir = state / "bpf" / 'a "b":c d'
    pin_dir.mkdir()
    with loader.load(replace(specs(), pin_dir=pin_dir), name) as loaded:
        assert loaded.maps.keys() == {path.name for path in pin_dir.iterdir()}
    bpffs.remove_tree(pin_dir)


def test_a_compiler_error_is_one_line(specs: Specs, trees: Trees, capfd: pytest.CaptureFixture[str]) -> None:
    trees(lambda text: text.replace("int verdict;", "int verdict", 1))
    with pytest.raises(LoadError, match=r"^sock_lb.bpf.c does not compile: main.c:\d+:\d+: expected ';'") as caught:
        loader.load(specs(), "bcc")
    assert "\n" not in str(caught.value)
    assert "error generated" in caught.value.log
    assert capfd.readouterr() == ("", "")


def test_a_refused_program_is_one_line(
    specs: Specs, trees: Trees, name: LoaderName, capfd: pytest.CaptureFixture[str]
) -> None:
    trees(lambda text: text.replace("int verdict;", BAD_READ, 1))
    before = descriptors()
    with pytest.raises(LoadError, match="was refused: verifier: invalid bpf_context access off=4000") as caught:
        loader.load(specs(), name)
    assert "\n" not in str(caught.value)
    assert "processed" in caught.value.log
    assert capfd.readouterr() == ("", "")
    assert descriptors() == before


def test_a_missing_helper_is_named(specs: Specs, trees: Trees, name: LoaderName) -> None:
    trees(lambda text: text.replace("int verdict;", "int verdict = ((int (*)(void))BPF_FUNC_tcp_gen_syncookie)();", 1))
    with pytest.raises(UnsupportedError, match=r"this kernel lacks the helper bpf_tcp_gen_syncookie, which .* needs"):
        loader.load(specs(), name)


def test_after_a_refusal_the_repaired_program_loads(
    specs: Specs, trees: Trees, name: LoaderName, monkeypatch: pytest.MonkeyPatch
) -> None:
    trees(lambda text: text.replace("int verdict;", BAD_READ, 1))
    with pytest.raises(LoadError):
        loader.load(specs(), name)
    monkeypatch.undo()
    loader.load(specs(), name).close()


def test_a_map_that_cannot_be_made_is_named(specs: Specs, name: LoaderName) -> None:
    with pytest.raises(LoadError, match=r"^map affinities cannot be made: Argument list too long$"):
        loader.load(specs(affinities=1 << 31), name)


def test_maps_have_to_be_pinned_on_a_bpffs(specs: Specs, tmp_path: Path, name: LoaderName) -> None:
    with pytest.raises(LoadError, match="is no directory of a bpffs"):
        loader.load(replace(specs(), pin_dir=tmp_path), name)


def test_constants_reach_the_programs(specs: Specs, trees: Trees, name: LoaderName) -> None:
    # A program with a constant of its own kind: it only loads if the verifier sees that the bad branch is dead.
    trees(
        lambda text: text.replace(
            "int verdict;",
            "int verdict = CONFIG(snat_last) == 54321 ? 0 : *(volatile int *)((char *)ctx + 4000);",
            1,
        )
    )
    spec = specs()
    loader.load(replace(spec, constants={**spec.constants, "snat_last": 54321}), name).close()
    with pytest.raises(LoadError):
        loader.load(replace(spec, constants={**spec.constants, "snat_last": 54320}), name)


def test_constants_have_to_be_complete(specs: Specs) -> None:
    with pytest.raises(ValueError, match="constants have to be"):
        replace(specs(), constants={"node_netns": 1})


def test_missing_capabilities_are_named(specs: Specs) -> None:
    code = """
import sys
from bpfproxy.datapath import features
from bpfproxy.errors import PermissionsError
try:
    features.require_capabilities()
except PermissionsError as error:
    print(error)
"""
    dropped = ["setpriv", "--bounding-set=-sys_admin,-bpf,-perfmon"]
    result = subprocess.run([*dropped, sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "missing CAP_BPF, CAP_PERFMON: run as root, or grant them\n"


def test_the_agent_never_loads_llvm(specs: Specs) -> None:
    loader.load(specs(), "bcc").close()
    libraries = Path("/proc/self/maps").read_text()
    assert "libbcc" not in libraries
    assert "LLVM" not in libraries
    assert "bcc" not in sys.modules


def test_auto_prefers_bcc(specs: Specs) -> None:
    assert [found.name for found in loader.availability()] == ["bcc", "prebuilt"]
    assert loader.choose("auto").name == "bcc"
    assert loader.choose("prebuilt").name == "prebuilt"


def test_a_loader_that_is_not_here_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bpfproxy.datapath.files._PACKAGE", Path("/nonexistent"))
    with pytest.raises(UnsupportedError, match=r"loader prebuilt: .*sock_lb.bpf.o is missing"):
        loader.choose("prebuilt")


def test_maps_version_follows_the_layout_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = maps_version({"a": 1})
    assert maps_version({"a": 1}) == original != maps_version({"a": 2})
    for header in ("abi.h", "maps.h", "packet_maps.h"):
        (tmp_path / header).write_text("/* new words */\n\n" + (c_tree() / header).read_text())
    monkeypatch.setattr("bpfproxy.datapath.loader.base.c_tree", lambda: tmp_path)
    assert maps_version({"a": 1}) == original
    (tmp_path / "abi.h").write_text(
        (tmp_path / "abi.h").read_text().replace("struct backend {", "struct backend { int x;")
    )
    assert maps_version({"a": 1}) != original


def test_open_maps(specs: Specs) -> None:
    spec = specs()
    assert loader.open_maps(spec.pin_dir / "none") == {}
    with loader.load(spec, "prebuilt") as loaded:
        again = loader.open_maps(spec.pin_dir)
        assert {n: m.id for n, m in again.items()} == {n: m.id for n, m in loaded.maps.items()}
        for map_ in again.values():
            map_.close()
