"""Names of chains, exactly as kube-proxy makes them (rule 19)."""

from __future__ import annotations

import re
from base64 import b32encode
from functools import lru_cache
from hashlib import sha256
from typing import Final

from bpfproxy.model.frontend import ServicePortName

SERVICES: Final = "KUBE-SERVICES"
EXTERNAL_SERVICES: Final = "KUBE-EXTERNAL-SERVICES"
NODEPORTS: Final = "KUBE-NODEPORTS"
POSTROUTING: Final = "KUBE-POSTROUTING"
MARK_MASQ: Final = "KUBE-MARK-MASQ"
FORWARD: Final = "KUBE-FORWARD"
PROXY_FIREWALL: Final = "KUBE-PROXY-FIREWALL"
FIREWALL: Final = "KUBE-FIREWALL"
"""The kubelet makes it, too, with the same rule."""
KUBELET_CANARY: Final = "KUBE-KUBELET-CANARY"
"""The kubelet's alone, by which it sees that its rules are there."""

SVC: Final = "KUBE-SVC-"
"""All of a ServicePort's endpoints that are used from this node."""
SVL: Final = "KUBE-SVL-"
"""Those on this node."""
EXT: Final = "KUBE-EXT-"
"""What clients outside the cluster may use."""
FW: Final = "KUBE-FW-"
"""Source ranges."""
SEP: Final = "KUBE-SEP-"
"""One endpoint."""

_HASHED: Final = re.compile(r"KUBE-(SVC|SVL|EXT|FW|SEP)-[A-Z2-7]{16}")


def is_hashed(chain: str) -> bool:
    """Whether a chain belongs to a ServicePort or to an endpoint of one."""
    return _HASHED.fullmatch(chain) is not None


def port_name(name: ServicePortName) -> str:
    """How comments call a ServicePort: `ns/name:port`, without the colon if the port has no name."""
    return f"{name.service}:{name.port}" if name.port else str(name.service)


@lru_cache(maxsize=1 << 16)
def port_hash(name: ServicePortName) -> str:
    """What the chains of one ServicePort share."""
    return _hash(_identity(name))


def endpoint_chain(name: ServicePortName, endpoint: str) -> str:
    """The chain of an endpoint, `10.0.0.1:80` or `[fd00::1]:80`, of a ServicePort."""
    return SEP + _hash(_identity(name) + endpoint)


def _identity(name: ServicePortName) -> str:
    return port_name(name) + name.protocol.name.lower()


def _hash(text: str) -> str:
    return b32encode(sha256(text.encode()).digest()).decode()[:16]
