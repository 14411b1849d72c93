"""The cookie of a network namespace, learnt in either way."""

from __future__ import annotations

import socket
import sys

from bpfproxy.datapath import netns_cookie
from bpfproxy.lab import bpf, cgroup, netns
from bpfproxy.lab.sandbox import Sandbox

SO_NETNS_COOKIE = 71


def by_program() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        return netns_cookie.by_program(probe)


def of_option() -> int | None:
    """What the kernel says, if it does (Linux 5.14)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            return int.from_bytes(probe.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8), sys.byteorder)
        except OSError:
            return None


def test_a_program_tells_what_the_kernel_says(sandbox: Sandbox) -> None:
    """Also where the loopback device is down."""
    here = netns_cookie.current()
    assert by_program() == here == (of_option() or here)
    with netns.inside(sandbox.namespace()):
        there = netns_cookie.current()
        assert by_program() == there == (of_option() or there)
    assert here != there


def test_the_program_is_gone_afterwards() -> None:
    by_program()
    root = cgroup.inode(cgroup.mount_point())
    assert [link for link in bpf.cgroup_links() if link.cgroup_id == root and link.program == "netns_cookie"] == []
