"""Programs and devices for tests of what is attached to devices."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sysconfig
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, Self

from pyroute2 import IPRoute

from bpfproxy.datapath import abi, files, netns_cookie
from bpfproxy.datapath.loader import LoadSpec
from bpfproxy.datapath.maps import Map
from bpfproxy.lab import netns
from bpfproxy.lab.sandbox import Sandbox

HERE: Final = Path(__file__).parent
PROGRAMS: Final = ("bp_xdp", "bp_tc_in", "bp_tc_in_left", "bp_tc_out", "bp_tc_in_l3", "bp_tc_out_l3")


def compile_programs(directory: Path) -> None:
    """Put device_test.bpf.c and its object into a directory."""
    source = directory / "device_test.bpf.c"
    source.write_text((HERE / source.name).read_text())
    asm = f"/usr/include/{sysconfig.get_config_var('MULTIARCH')}"
    flags = ["-O2", "-Wall", "-target", "bpf", "-mcpu=v2", "-g", "-idirafter", asm, "-I", str(files.c_tree())]
    output = str(source.with_suffix(".o"))
    subprocess.run(["clang", *flags, "-c", str(source), "-o", output], check=True)


def spec(directory: Path, pin_dir: Path) -> LoadSpec:
    """What to load."""
    pin_dir.mkdir(exist_ok=True)
    constants = {name: 0 for name, _ in abi.ffi.typeof("struct config").fields}
    constants |= {"node_netns": netns_cookie.current()}
    sizes = {"hits": len(PROGRAMS)}
    return LoadSpec(programs=("device_test",), constants=constants, sizes=sizes, pin_dir=pin_dir, directory=directory)


def hits(maps: Mapping[str, Map]) -> dict[str, int]:
    """How many packets each program saw."""
    counts = {int.from_bytes(key, "little"): int.from_bytes(value, "little") for key, value in maps["hits"].items()}
    return {name: counts[index] for index, name in enumerate(PROGRAMS)}


class Net:
    """A network namespace of the test's own, with `ip` in it. It is removed with all its devices."""

    def __init__(self) -> None:
        self._sandbox = Sandbox()
        self.name = self._sandbox.netns("host")

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._sandbox).namespace()
            with netns.inside(self.name):
                self.ip = stack.enter_context(IPRoute())
            self.up(1)
            self._undo = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def veth(self, name: str, *addresses: str, peer: Net | None = None, mtu: int = 1500) -> int:
        """A pair of veths `name` and `name`p (in the namespace `peer`), both up; returns the index of `name`."""
        other = {"ifname": f"{name}p", "mtu": mtu}
        if peer is not None:
            with open(netns.DIRECTORY / peer.name) as file:  # noqa: PTH123 - a descriptor is wanted
                self.ip.link("add", ifname=name, kind="veth", mtu=mtu, peer=other | {"net_ns_fd": file.fileno()})
        else:
            self.ip.link("add", ifname=name, kind="veth", mtu=mtu, peer=other)
        index = self.index(name)
        self.address(index, *addresses)
        self.up(index)
        (peer or self).up((peer or self).index(f"{name}p"))
        return index

    def add(self, name: str, **what: object) -> int:
        """Another device, up."""
        self.ip.link("add", ifname=name, **what)
        self.up(self.index(name))
        return self.index(name)

    def address(self, index: int, *addresses: str) -> None:
        """Give addresses such as 192.0.2.1/24; those of IPv6 are usable at once."""
        for text in addresses:
            address, _, length = text.partition("/")
            flags = {"flags": 2} if ":" in address else {}  # IFA_F_NODAD
            self.ip.addr("add", index=index, address=address, prefixlen=int(length), **flags)

    def index(self, name: str) -> int:
        """Raises IndexError if there is no such device."""
        return int(self.ip.link_lookup(ifname=name)[0])

    def up(self, index: int) -> None:
        """Set a device up."""
        self.ip.link("set", index=index, state="up")

    def delete(self, name: str) -> None:
        """Remove a device."""
        self.ip.link("del", index=self.index(name))

    def send(self, address: str) -> None:
        """Send a datagram to `address`; nobody need listen."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with netns.inside(self.name), socket.socket(family, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"hello", (address, 9))


def net() -> Iterator[Net]:
    """For fixtures."""
    with Net() as made:
        yield made
