"""The state directory: its bpffs and its lock."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from bpfproxy.datapath import bpffs
from bpfproxy.datapath.libbpf import pin
from bpfproxy.datapath.maps import Map, Shape
from bpfproxy.errors import AlreadyRunningError
from bpfproxy.lab.sandbox import Sandbox
from bpfproxy.lock import StateLock, holder


def pin_a_map(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    with Map.create("test", Shape(2, 4, 8, 1, 0)) as map_:
        pin(map_.fd, path)


def run(code: str, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*command, sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60, check=False
    )


# ---- bpffs -------------------------------------------------------------------------------------------------------


def test_mount_and_unmount_are_idempotent(sandbox: Sandbox) -> None:
    state = sandbox.directory / "deep" / "state"
    assert bpffs.locate(sandbox.directory) is None
    try:
        top = bpffs.mount(state)
        assert top == state / "bpf"
        assert bpffs.is_bpffs(top)
        assert bpffs.mount(state) == top == bpffs.locate(state)
        pin_a_map(top / "directory" / "map")
    finally:
        assert bpffs.unmount(state)
    assert not bpffs.unmount(state)
    assert list((state).iterdir()) == []


def test_remove_tree(state: Path) -> None:
    top = state / "bpf" / "maps"
    pin_a_map(top / "one")
    pin_a_map(top / "below" / "two")
    bpffs.remove_tree(top)
    bpffs.remove_tree(top)
    assert not top.exists()


def test_nothing_is_mounted_without_the_capability(tmp_path: Path) -> None:
    result = run(
        f"""
        from pathlib import Path
        from bpfproxy.datapath import bpffs
        from bpfproxy.errors import PermissionsError
        try:
            bpffs.mount(Path({str(tmp_path)!r}))
        except PermissionsError as error:
            print(error)
        """,
        "setpriv", "--bounding-set=-sys_admin",
    )  # fmt: skip
    assert result.stdout.startswith("mounting a bpffs at"), result.stderr
    assert "needs CAP_SYS_ADMIN" in result.stdout


def test_from_another_mount_namespace_it_is_mounted_where_it_lasts(sandbox: Sandbox) -> None:
    """As in a shell of `ip netns exec`, whose mounts would go with it, and with them the datapath. This process plays
    the init process, which not every machine lets others look into."""
    preamble = f"""
        from pathlib import Path
        from bpfproxy.datapath import bpffs
        bpffs._INIT = Path("/proc/{os.getpid()}")
        state = Path({str(sandbox.directory)!r})
    """
    elsewhere = ("unshare", "--mount", "--propagation=private")
    lasting = f"/proc/{os.getpid()}/root{sandbox.directory}/bpf"
    try:
        result = run(
            f"{preamble}\n        print(bpffs.mount(state), bpffs.mount(state), bpffs.locate(state))", *elsewhere
        )
        assert result.stdout.split() == [lasting] * 3, result.stderr
        assert bpffs.locate(sandbox.directory) == sandbox.directory / "bpf"
        pin_a_map(sandbox.directory / "bpf" / "map")
        result = run(f"{preamble}\n        print(bpffs.unmount(state), bpffs.unmount(state))", *elsewhere)
        assert result.stdout.split() == ["True", "False"], result.stderr
        assert bpffs.locate(sandbox.directory) is None
    finally:
        bpffs.unmount(sandbox.directory)


# ---- lock --------------------------------------------------------------------------------------------------------


def test_one_holder_at_a_time(tmp_path: Path) -> None:
    assert holder(tmp_path) is None
    with StateLock(tmp_path / "state"):
        assert holder(tmp_path / "state") == os.getpid()
        with pytest.raises(AlreadyRunningError, match=f"held by process {os.getpid()}: one agent per state directory"):
            StateLock(tmp_path / "state")
    assert holder(tmp_path / "state") is None
    with StateLock(tmp_path / "state"):
        pass


def test_a_killed_holder_leaves_no_lock(tmp_path: Path) -> None:
    code = f"""
    from pathlib import Path
    from bpfproxy.lock import StateLock
    lock = StateLock(Path({str(tmp_path)!r}))
    print("held", flush=True)
    input()
    """
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        assert holder(tmp_path) == child.pid
        with pytest.raises(AlreadyRunningError, match=f"process {child.pid}"):
            StateLock(tmp_path)
        child.kill()
    StateLock(tmp_path).release()


def test_the_file_may_be_removed_with_the_lock(tmp_path: Path) -> None:
    first = StateLock(tmp_path)
    first.release(remove=True)
    assert list(tmp_path.iterdir()) == []
    StateLock(tmp_path).release()


def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    directory = tmp_path / "closed"
    directory.mkdir(mode=0o700)
    result = run(
        f"""
        from pathlib import Path
        from bpfproxy.lock import StateLock
        from bpfproxy.errors import PermissionsError
        try:
            StateLock(Path({str(directory)!r}))
        except PermissionsError as error:
            print(error)
        """,
        "setpriv", "--bounding-set=-all", "--inh-caps=-all", "--reuid=65534", "--clear-groups",
    )  # fmt: skip
    assert "lock cannot be written: run as root" in result.stdout, result.stderr
