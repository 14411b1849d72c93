"""What a device's driver says of native XDP, asked of the kernel's generic netlink family `netdev` (Linux 6.3).

pyroute2 is imported with this module: import it where it is needed.
"""

from __future__ import annotations

from typing import Final

from pyroute2.netlink import NLM_F_REQUEST, genlmsg
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.generic import GenericNetlinkSocket

_DEV_GET: Final = 1
_BASIC: Final = 1
"""NETDEV_XDP_ACT_BASIC: the verdicts of a program are obeyed, before the stack sees the packet."""


class _Message(genlmsg):  # type: ignore[misc]
    nla_map = (
        ("NETDEV_A_DEV_UNSPEC", "none"),
        ("NETDEV_A_DEV_IFINDEX", "uint32"),
        ("NETDEV_A_DEV_PAD", "none"),
        ("NETDEV_A_DEV_XDP_FEATURES", "uint64"),
    )


def has_native_xdp(ifindex: int) -> bool | None:
    """Whether the driver of a device has native XDP; None if this kernel does not tell. Whether it can be attached
    depends on the MTU and the queues as well."""
    request = _Message()
    request["cmd"] = _DEV_GET
    request["version"] = 1
    request["attrs"] = [("NETDEV_A_DEV_IFINDEX", ifindex)]
    try:
        with GenericNetlinkSocket() as netlink:
            netlink.bind("netdev", _Message)
            for reply in netlink.nlm_request(request, msg_type=netlink.prid, msg_flags=NLM_F_REQUEST):
                features = reply.get_attr("NETDEV_A_DEV_XDP_FEATURES")
                return None if features is None else bool(features & _BASIC)
    except NetlinkError:
        return None
    return None
