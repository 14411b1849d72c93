"""How a socket was refused: the ICMP errors that the kernel keeps for it."""

from __future__ import annotations

import contextlib
import socket
from typing import Any

_IP_RECVERR, _IPV6_RECVERR, _MSG_ERRQUEUE = 11, 25, 0x2000
_OPTIONS = ((socket.IPPROTO_IP, _IP_RECVERR), (socket.IPPROTO_IPV6, _IPV6_RECVERR))
_ORIGIN_AT = 4
"""Of the byte in `struct sock_extended_err` that says who found the error."""
_ICMP = (2, 3)
_QUOTED = 512


def ask(sock: socket.socket, *, on: bool = True) -> None:
    """Have the kernel keep ICMP errors, and tell them to unconnected sockets, too."""
    for level, option in _OPTIONS:
        with contextlib.suppress(OSError):  # IPv4 sockets know nothing of IPv6; v6 ones have both, for mapped addresses
            sock.setsockopt(level, option, int(on))


def told(sock: socket.socket) -> dict[str, Any]:
    """{"by": "icmp", "about": whom the refused packet was sent to} if there is such an error, else nothing."""
    timeout = sock.gettimeout()
    sock.setblocking(False)
    try:
        _, ancillary, _, about = sock.recvmsg(_QUOTED, _QUOTED, _MSG_ERRQUEUE)
    except BlockingIOError:
        return {}
    finally:
        sock.settimeout(timeout)
    for level, kind, data in ancillary:
        if (level, kind) in _OPTIONS and data[_ORIGIN_AT] in _ICMP:
            return {"by": "icmp", "about": about[:2]}
    return {}
