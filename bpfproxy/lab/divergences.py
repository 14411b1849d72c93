"""Where a proxier is known to do otherwise than the semantics say, and why. `docs/semantics.md` has this list."""

from __future__ import annotations

from typing import Final, Literal

Divergence = Literal[
    "address-kept",
    "ranges-bind-outside-clients",
    "told-at-connect",
    "no-masquerade-of-sockets",
    "masquerade-without-detector",
    "no-loopback-node-ports",
    "address-of-the-node",
    "accepts-first",
]

REASONS: Final[dict[Divergence, str]] = {
    "address-kept": "ebpf: the client's address is kept where a backend on the same node answers, also under policy"
    " Cluster: the answer passes the node anyway",
    "ranges-bind-outside-clients": "ebpf: at connect the source of a socket is not known yet, so source ranges bind"
    " clients outside the cluster only",
    "told-at-connect": "ebpf: where a packet would be dropped, connect fails at once (EHOSTUNREACH) and nobody waits",
    "no-masquerade-of-sockets": "ebpf: a translated socket speaks to its backend directly, so nothing has to come back"
    " through the node",
    "masquerade-without-detector": "ebpf: where the node does not know pods by their addresses, clients of a ClusterIP"
    " are masqueraded towards other nodes, or the answers would go past the node",
    "no-loopback-node-ports": "127.0.0.1 and ::1 cannot be routed off the loopback device: ipvs and nftables have no"
    " NodePorts there, iptables those of IPv4",
    "address-of-the-node": "userspace: the connection to the backend is the proxy's own",
    "accepts-first": "userspace: the proxy takes a connection before it has one to a backend, and does not hear of"
    " refused datagrams in time",
}
"""Each with its reason."""
