"""Kubernetes objects as trees, for the tests of the decoder."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from bpfproxy.errors import InputError
from bpfproxy.lab import manifests
from bpfproxy.lab.layout import NODES
from bpfproxy.model.address import parse_address
from bpfproxy.model.event import Object
from bpfproxy.model.service import (
    ObjectName,
)
from bpfproxy.sources.manifest import Manifest, decode_manifest

FORMATS = ("json", "yaml")


def ip(text: str) -> Any:
    return parse_address(text)


def decode(text: str | bytes, path: str = "m.yaml") -> Manifest:
    return decode_manifest(text.encode() if isinstance(text, str) else text, path)


def decode_one(tree: object, form: str = "yaml") -> Object | None:
    """The one object of a document, through JSON or YAML."""
    text = json.dumps(tree) if form == "json" else yaml.safe_dump(tree)
    objects = decode(text, f"m.{form}").objects
    assert len(objects) <= 1
    return next(iter(objects.values()), None)


def faults(text: str | bytes, path: str = "m.yaml") -> list[str]:
    with pytest.raises(InputError) as caught:
        decode(text, path)
    return str(caught.value).splitlines()


def service(spec: dict[str, Any] | None = None, **rest: Any) -> dict[str, Any]:
    metadata = {"name": "web", "namespace": "shop", **rest.pop("metadata", {})}
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec or {}, **rest}


def slice_(metadata: dict[str, Any] | None = None, **rest: Any) -> dict[str, Any]:
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "addressType": "IPv4",
        "metadata": {
            "name": "web-1",
            "namespace": "shop",
            "labels": {"kubernetes.io/service-name": "web"},
            **(metadata or {}),
        },
        **rest,
    }


def node(**rest: Any) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}, **rest}


NAME = ObjectName("shop", "web")
A = "10.0.0.1"


def ports(*entries: dict[str, Any], **spec: Any) -> dict[str, Any]:
    return service({"ports": list(entries), **spec})


def lab_nodes() -> list[dict[str, Any]]:
    """The lab's Nodes with all of their addresses, since nobody looks at interfaces where there is no kernel."""
    nodes = manifests.nodes()
    for node in nodes:
        net = NODES[node["metadata"]["name"]]
        more = [{"type": "InternalIP", "address": address} for address in (net.gateway4, net.gateway6)]
        node["status"]["addresses"] += more
    return nodes
