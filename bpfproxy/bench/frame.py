"""What has become of a packet of the bench. Pure."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

from bpfproxy.bench import wire
from bpfproxy.bench.traffic import Traffic


def check_frame(frame: bytes, traffic: Traffic, *, translated: bool, remote: bool) -> str:
    """What is wrong with a packet of `traffic` after a program; empty if nothing is. `translated`: it should go to a
    pod; `remote`: to one of another node, in the name of this one."""
    from scapy.layers.inet import IP, UDP
    from scapy.layers.inet6 import IPv6
    from scapy.layers.l2 import Ether

    layer: Any = IP if traffic.family == 4 else IPv6
    packet: Any = Ether(frame)
    if UDP not in packet:
        return f"it is none of UDP any more: {frame.hex()}"
    ip, udp = packet[layer], packet[UDP]
    fresh = packet.copy()
    fresh[UDP].chksum = None
    if traffic.family == 4:
        fresh[IP].chksum = None
    if bytes(fresh) != frame:
        return f"a checksum or length is wrong: {packet.summary()}"
    pods = (wire.REMOTE if remote else wire.LOCAL)[traffic.family]
    to_pod = udp.dport == wire.TARGET_PORT and 0 <= int(ip_address(ip.dst)) - pods < wire.PODS
    if to_pod != translated:
        return f"it goes to {ip.dst} port {udp.dport}"
    if translated and (ip.src == wire.NODE_ADDRESS[traffic.family]) != remote:
        return f"it comes from {ip.src}"
    return ""
