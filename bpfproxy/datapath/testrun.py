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


def run(fd: int, kind: int, packet: bytes, *, ifindex: int = 0, repeat: int = 1, flags: int = 0) -> Outcome:
    """Run the program `fd`, of program type `kind`, on a frame. Raises OSError: for one, if `flags` has
    CHECKSUM_COMPLETE and the checksum of the whole packet is not what the program made the kernel believe (EBADMSG).

    `ifindex` is the device that the packet arrives by; 0 leaves it to the kernel (the loopback device).
    """
    options = ffi.new("struct bpf_test_run_opts *")
    options.sz = ffi.sizeof("struct bpf_test_run_opts")
    data_in = ffi.from_buffer(packet)
    data_out = ffi.new("char[]", len(packet) + _ROOM)
    options.data_in, options.data_size_in = data_in, len(packet)
    options.data_out, options.data_size_out = data_out, len(data_out)
    options.repeat, options.flags = repeat, flags
    context: Any = None
    if kind == _XDP:
        context = ffi.new("struct xdp_md *", {"data_end": len(packet), "ingress_ifindex": ifindex})
        options.ctx_out, options.ctx_size_out = context, ffi.sizeof(context[0])
    elif ifindex:
        context = ffi.new("struct __sk_buff *", {"ifindex": ifindex})
    if context is not None:
        options.ctx_in, options.ctx_size_in = context, ffi.sizeof(context[0])
    libbpf.check(lib().bpf_prog_test_run_opts(fd, options), "BPF_PROG_TEST_RUN")
    verdict = int(ffi.cast("int32_t", options.retval))
    found = bytes(ffi.buffer(data_out, options.data_size_out))
    before = context.data if kind == _XDP else 0
    return Outcome(verdict, found[before:], options.duration, found[:before])
