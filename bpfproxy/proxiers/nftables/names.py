"""Names of what the table holds. Those of Services are made as kube-proxy makes them: a hash, then the clear text."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

from bpfproxy.model.address import Family, format_address
from bpfproxy.model.frontend import Backend, ServicePortName
from bpfproxy.model.service import ObjectName

TABLE: Final = "kube-proxy"
FAMILIES: Final[dict[Family, str]] = {4: "ip", 6: "ip6"}
"""nft's words for them."""

CLUSTER_IPS: Final = "cluster-ips"
NODE_PORT_IPS: Final = "nodeport-ips"
SERVICE_IPS: Final = "service-ips"
SERVICE_NODE_PORTS: Final = "service-nodeports"
NO_ENDPOINT_SERVICES: Final = "no-endpoint-services"
NO_ENDPOINT_NODE_PORTS: Final = "no-endpoint-nodeports"
FIREWALL_IPS: Final = "firewall-ips"

MARK_MASQUERADE: Final = "mark-for-masquerade"
MASQUERADING: Final = "masquerading"
REJECT: Final = "reject-chain"
SERVICES: Final = "services"
SERVICE_ENDPOINTS_CHECK: Final = "service-endpoints-check"
NODE_PORT_ENDPOINTS_CHECK: Final = "nodeport-endpoints-check"
FIREWALL_CHECK: Final = "firewall-check"
CLUSTER_IPS_CHECK: Final = "cluster-ips-check"

SERVICE: Final = "service-"
LOCAL: Final = "local-"
EXTERNAL: Final = "external-"
FIREWALL: Final = "firewall-"
ENDPOINT: Final = "endpoint-"
AFFINITY: Final = "affinity-"

_LENGTH_MAX: Final = 240
"""Of what follows the prefix."""
_COMMENT_MAX: Final = 128
_HASH_LENGTH: Final = 8
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9_./-]")
_UNQUOTABLE: Final = re.compile(r'["\\\n]')


def service_base(name: ServicePortName) -> str:
    """What the names of all chains of a ServicePort end in: `ULMVA6XW-ns1/svc1/tcp/p80`."""
    return _hashed(_path(name))


def endpoint_base(name: ServicePortName, backend: Backend) -> str:
    """What the names of the chain and the set of an endpoint end in: `5OJB2KTY-ns1/svc1/tcp/p80__10.180.0.1/80`."""
    address = format_address(backend.address).replace(":", ".")
    return _hashed(f"{_path(name)}__{address}/{backend.port}")


def path_of(chain: str) -> str:
    """Which ServicePort a chain that was named here belongs to: `ns1/svc1/tcp/p80`."""
    return chain.partition("-")[2][_HASH_LENGTH + 1 :].partition("__")[0]


def comment_of(name: ServicePortName) -> str:
    """A ServicePort in comments: `ns1/svc1:p80`."""
    return quotable(f"{name.service}:{name.port}" if name.port else str(name.service))


def owner(service: ObjectName) -> str:
    """A Service in the comment of an address that is its own: `ns1/svc1`."""
    return quotable(str(service)).replace(" ", "_")


def owners_comment(owners: Iterable[str]) -> str:
    """Services that share an address, as far as a comment can hold them; `owners_of` is the inverse."""
    comment = ""
    for owner in sorted(owners):
        longer = f"{comment} {owner}" if comment else owner
        comment = longer if len(longer) <= _COMMENT_MAX else comment
    return comment


def owners_of(comment: str) -> list[str]:
    """See `owners_comment`; one without a name if nobody is named."""
    return comment.split(" ")


def quotable(text: str) -> str:
    """`text` as far as a comment can hold it."""
    return _UNQUOTABLE.sub("_", text)[:_COMMENT_MAX]


@lru_cache(maxsize=4096)
def _path(name: ServicePortName) -> str:
    return f"{name.service.namespace}/{name.service.name}/{name.protocol.name.lower()}/{name.port}"


def _hashed(text: str) -> str:
    digest = base64.b32encode(hashlib.sha256(text.encode()).digest()[:5]).decode()
    name = f"{digest}-{_UNSAFE.sub('_', text)}"
    return name if len(name) <= _LENGTH_MAX else name[: _LENGTH_MAX - 3] + "..."
