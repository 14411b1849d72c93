"""BPF_PROG_TEST_RUN: one packet through a program of the packet level, without any device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from bpfproxy.datapath import libbpf
from bpfproxy.datapath.libbpf import ffi, lib

CHECKSUM_COMPLETE: Final = 1 << 2
"""For tc: the packet as a device hands it over that has summed it. The kernel checks the sum afterwards."""

_XDP: Final = 6
_ROOM: Final = 512
"""Bytes that a program may add to the packet."""

ffi.cdef(
    """
    struct bpf_test_run_opts {
        size_t sz;
        const void *data_in; void *data_out;
        uint32_t data_size_in, data_size_out;
        const void *ctx_in; void *ctx_out;
        uint32_t ctx_size_in, ctx_size_out, retval;
        int repeat;
        uint32_t duration, flags, cpu, batch_size;
    };
    struct xdp_md { uint32_t data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex; };
    struct __sk_buff {
        uint32_t len, pkt_type, mark, queue_mapping, protocol, vlan_present, vlan_tci, vlan_proto, priority;
        uint32_t ingress_ifindex, ifindex, tc_index, cb[5], hash, tc_classid, data, data_end, napi_id, family;
        uint32_t remote_ip4, local_ip4, remote_ip6[4], local_ip6[4], remote_port, local_port, data_meta;
        uint64_t flow_keys, tstamp;
        uint32_t wire_len, gso_segs;
        uint64_t sk;
        uint32_t gso_size; uint8_t tstamp_type; uint32_t pad : 24;
        uint64_t hwtstamp;
    };
    int bpf_prog_test_run_opts(int, struct bpf_test_run_opts *);
    """
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of the packet."""

    verdict: int
    """The program's return value, signed."""
    packet: bytes
    nanoseconds: int
    """Mean time of a run."""
    metadata: bytes = b""
    """What an XDP program has put before the packet, for tc."""


class Runner:
    """Runs the program `fd`, of program type `kind`, on one frame after another. `ifindex` is the device that they
    arrive by; 0 leaves it to the kernel (the loopback device). `segment`, for tc: they are to be cut by a device into
    segments with so many bytes of data."""

    def __init__(
        self, fd: int, kind: int, *, ifindex: int = 0, flags: int = 0, size: int = 65536, segment: int = 0
    ) -> None:
        self._fd = fd
        self._is_xdp = kind == _XDP
        self._size = size + _ROOM
        self._out = ffi.new("char[]", self._size)
        self._options: Any = ffi.new("struct bpf_test_run_opts *")
        self._options.sz = ffi.sizeof("struct bpf_test_run_opts")
        self._options.data_out = self._out
        self._options.flags = flags
        self._context: Any = None
        if self._is_xdp:
            self._context = ffi.new("struct xdp_md *")
        elif ifindex or segment:
            self._context = ffi.new("struct __sk_buff *", {"ifindex": ifindex, "gso_size": segment})
        self._segment = segment
        self._ifindex = ifindex
        self._run = lib().bpf_prog_test_run_opts

    def __call__(self, packet: bytes, *, repeat: int = 1) -> Outcome:
        """Of at most `size` bytes. Raises OSError: for one, if `flags` has CHECKSUM_COMPLETE and the checksum of the
        whole packet is not what the program made the kernel believe (EBADMSG)."""
        options, context = self._options, self._context
        data = ffi.from_buffer(packet)
        options.data_in, options.data_size_in, options.data_size_out = data, len(packet), self._size
        options.repeat = repeat
        if context is not None:
            size = ffi.sizeof(context[0])
            options.ctx_in, options.ctx_size_in = context, size
            if self._is_xdp:
                options.ctx_out, options.ctx_size_out = context, size
                context.data, context.data_end, context.data_meta = 0, len(packet), 0
                context.ingress_ifindex = self._ifindex
            elif self._segment:
                context.gso_segs = -(-len(packet) // self._segment)
        result = self._run(self._fd, options)
        if result:
            libbpf.check(result, "BPF_PROG_TEST_RUN")
        found = ffi.buffer(self._out, options.data_size_out)[:]
        before = context.data if self._is_xdp else 0
        verdict = options.retval
        return Outcome(verdict - (verdict >> 31 << 32), found[before:], options.duration, found[:before])


def run(
    fd: int, kind: int, packet: bytes, *, ifindex: int = 0, repeat: int = 1, flags: int = 0, segment: int = 0
) -> Outcome:
    """One frame: see Runner."""
    return Runner(fd, kind, ifindex=ifindex, flags=flags, size=len(packet), segment=segment)(packet, repeat=repeat)
