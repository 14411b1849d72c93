"""Pinned links: made, switched, moved, removed."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cffi
import pytest

from bpfproxy.datapath import attach, libbpf
from bpfproxy.datapath.attach import CgroupTarget, Outcome
from bpfproxy.errors import DatapathError
from bpfproxy.lab.wait import wait_until

EPERM = "1"
OK = "0"


class Verdict(NamedTuple):
    """A program of two instructions: allow, or refuse."""

    name: str
    fd: int
    type: int
    attach_type: int


Verdicts = Callable[..., Verdict]


@pytest.fixture
def verdicts() -> Iterator[Verdicts]:
    """Loads programs that return 0 (refuse) or 1 (allow)."""
    made: list[int] = []

    def make(value: int, section: str = "cgroup/connect4") -> Verdict:
        kind, attach_type = libbpf.program_type(section)
        instructions = libbpf.ffi.new("struct bpf_insn[]", [{"code": 0xB7, "imm": value}, {"code": 0x95}])
        options = libbpf.ffi.new("struct bpf_prog_load_opts *", {"expected_attach_type": attach_type})
        options.sz = libbpf.ffi.sizeof("struct bpf_prog_load_opts")
        name = f"test_{value}"
        fd = libbpf.lib().bpf_prog_load(kind, name.encode(), b"GPL", instructions, 2, options)
        made.append(libbpf.check(fd, "load"))
        return Verdict(name, fd, kind, attach_type)

    yield make
    for fd in made:
        os.close(fd)


@pytest.fixture
def port() -> Iterator[int]:
    """Somebody who listens on loopback."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def connect(group: Path, port: int) -> str:
    """The errno that a process of `group` gets when it connects."""
    code = f"""
import pathlib, os, socket
pathlib.Path({str(group / "cgroup.procs")!r}).write_text(str(os.getpid()))
with socket.socket() as s:
    print(s.connect_ex(("127.0.0.1", {port})))
"""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_create_switch_detach(links: Path, group: Path, verdicts: Verdicts, port: int) -> None:
    target = CgroupTarget(group)
    refuse, allow = verdicts(0), verdicts(1)
    assert connect(group, port) == OK
    assert attach.attach(links, "c4", refuse, target) is Outcome.CREATED
    assert connect(group, port) == EPERM
    assert attach.attach(links, "c4", refuse, target) is Outcome.UNCHANGED
    (before,) = attach.links(links)
    assert attach.attach(links, "c4", allow, target) is Outcome.UPDATED
    (after,) = attach.links(links)
    assert connect(group, port) == OK
    assert (before.program, after.program) == ("test_0", "test_1")
    assert after.name == "c4"
    assert after.type == "cgroup"
    assert after.attach_type == "cgroup_inet4_connect"
    assert after.cgroup_id == group.stat().st_ino
    assert after.alive
    attach.attach(links, "c4", refuse, target)
    assert attach.detach(links, "c4")
    assert connect(group, port) == OK  # at once
    assert not attach.detach(links, "c4")


def test_only_the_processes_of_the_cgroup_are_concerned(
    links: Path, group: Path, verdicts: Verdicts, port: int
) -> None:
    attach.attach(links, "c4", verdicts(0), CgroupTarget(group))
    nested = group / "pod"
    nested.mkdir()
    assert connect(nested, port) == EPERM
    with socket.create_connection(("127.0.0.1", port), timeout=5):
        pass


def test_a_link_moves_to_another_cgroup(links: Path, group: Path, verdicts: Verdicts, port: int) -> None:
    old, new = group / "old", group / "new"
    old.mkdir()
    new.mkdir()
    program = verdicts(0)
    attach.attach(links, "c4", program, CgroupTarget(old))
    assert attach.attach(links, "c4", program, CgroupTarget(new)) is Outcome.CREATED
    assert [path.name for path in links.iterdir()] == ["c4"]
    assert (connect(old, port), connect(new, port)) == (OK, EPERM)


def test_a_link_of_a_removed_cgroup_is_replaced(links: Path, group: Path, verdicts: Verdicts, port: int) -> None:
    gone, here = group / "gone", group / "here"
    gone.mkdir()
    here.mkdir()
    program = verdicts(0)
    attach.attach(links, "c4", program, CgroupTarget(gone))
    gone.rmdir()
    # The kernel lets go of a removed cgroup some time later.
    wait_until(lambda: not attach.links(links)[0].alive, 10, "the link is dead")
    assert attach.attach(links, "c4", program, CgroupTarget(here)) is Outcome.CREATED
    assert connect(here, port) == EPERM


def test_a_link_of_another_hook_is_replaced(links: Path, group: Path, verdicts: Verdicts) -> None:
    attach.attach(links, "one", verdicts(1), CgroupTarget(group))
    six = verdicts(1, "cgroup/connect6")
    assert attach.attach(links, "one", six, CgroupTarget(group)) is Outcome.CREATED
    assert [link.attach_type for link in attach.links(links)] == ["cgroup_inet6_connect"]


def test_a_half_made_replacement_does_no_harm(links: Path, group: Path, verdicts: Verdicts, port: int) -> None:
    """An agent was killed between pinning the new link and putting it in the old one's place."""
    old, new = group / "old", group / "new"
    old.mkdir()
    new.mkdir()
    attach.attach(links, "c4", verdicts(0), CgroupTarget(old))
    attach.attach(links, "c4_new", verdicts(0), CgroupTarget(new))
    attach.attach(links, "c4", verdicts(0), CgroupTarget(new))
    assert [path.name for path in links.iterdir()] == ["c4"]
    assert attach.detach_all(links) == ["c4"]
    assert connect(new, port) == OK


def test_order_is_data(links: Path, group: Path, verdicts: Verdicts) -> None:
    sections = ("cgroup/connect4", "cgroup/sendmsg4", "cgroup/getpeername4", "cgroup/post_bind4", "cgroup/recvmsg4")
    programs = [verdicts(1, section) for section in sections]
    ordered = attach.in_order(programs)
    hooks = [libbpf.attach_type_name(program.attach_type) for program in ordered]
    assert hooks == sorted(hooks, key=attach.ORDER.index)
    assert hooks[0] == "cgroup_udp4_recvmsg"
    for number, program in enumerate(programs):
        attach.attach(links, f"link{number}", program, CgroupTarget(group))
    order = {f"link{programs.index(program)}": place for place, program in enumerate(ordered)}
    detached = attach.detach_all(links)
    assert [order[name] for name in detached] == [4, 3, 2, 1, 0]
    assert not links.exists()
    assert attach.detach_all(links) == []
    assert attach.links(links) == []


def test_links_outlive_the_process_that_made_them(links: Path, group: Path, verdicts: Verdicts, port: int) -> None:
    attach.attach(links, "c4", verdicts(0), CgroupTarget(group))
    code = f"""
from pathlib import Path
from bpfproxy.datapath import attach
print([link.program for link in attach.links(Path({str(links)!r}))])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "['test_0']\n"


def test_errors(links: Path, group: Path, verdicts: Verdicts, tmp_path: Path) -> None:
    with pytest.raises(DatapathError, match=f"cannot attach test_1 to cgroup {group}/none: No such file"):
        attach.attach(links, "c4", verdicts(1), CgroupTarget(group / "none"))
    with pytest.raises(DatapathError, match="cannot attach test_1"):
        attach.attach(links, "c4", verdicts(1), CgroupTarget(tmp_path))
    assert attach.links(links) == []


def test_an_exclusive_program_is_said(links: Path, group: Path, verdicts: Verdicts) -> None:
    other = cffi.FFI()
    other.cdef("int bpf_prog_attach(int, int, int, unsigned int);")
    library: Any = other.dlopen("libbpf.so.1")
    program = verdicts(1)
    fd = os.open(group, os.O_RDONLY | os.O_DIRECTORY)
    try:
        assert library.bpf_prog_attach(program.fd, fd, program.attach_type, 0) == 0
    finally:
        os.close(fd)
    with pytest.raises(DatapathError, match="was attached without allowing others"):
        attach.attach(links, "c4", program, CgroupTarget(group))
