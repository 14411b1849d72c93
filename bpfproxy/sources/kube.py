"""Kubernetes objects from their JSON form: `decode` is the one way in, for manifests and for an API server's answers.

What is valid is what an API server would accept, as far as a proxy is concerned: a value that it refuses would
never reach a node, and accepting it here would only hide a slip of the pen.
"""

from __future__ import annotations

import re
import sys
from typing import Any, Final, TypeVar, get_args

import msgspec

from bpfproxy.config import ProxyMode
from bpfproxy.model.address import Address
from bpfproxy.model.event import Object
from bpfproxy.model.service import (
    AFFINITY_TIMEOUT_DEFAULT,
    Endpoint,
    EndpointPort,
    EndpointSlice,
    Node,
    ObjectName,
    Protocol,
    Scheduler,
    Service,
    ServicePort,
)
from bpfproxy.sources import wire
from bpfproxy.sources.fields import (
    FieldError,
    address,
    endpoint_address,
    network,
    one_of,
    port_number,
    quoted,
    virtual_address,
)

SERVICE_NAME_LABEL: Final = "kubernetes.io/service-name"
PROXY_NAME_LABEL: Final = "service.kubernetes.io/service-proxy-name"
HEADLESS_LABEL: Final = "service.kubernetes.io/headless"
ZONE_LABEL: Final = "topology.kubernetes.io/zone"
LEAVING_TAINT: Final = "ToBeDeletedByClusterAutoscaler"
SCHEDULER_ANNOTATION: Final = "bpfproxy.io/scheduler"
PROXY_MODE_ANNOTATION: Final = "bpfproxy.io/proxy-mode"
