"""What the column of the real kube-proxy needs: the API server that its binary lists and watches, asked over HTTP, and
the configuration that it is given. The binary itself is tried where there is one on PATH."""

from __future__ import annotations

import http.client
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bpfproxy.errors import InputError
from bpfproxy.lab import cases, manifests, netns
from bpfproxy.lab.cases import Agents
from bpfproxy.lab.sandbox import Sandbox
from bpfproxy.parity import kube_proxy
from bpfproxy.parity.api_server import ApiServer, Objects
from bpfproxy.parity.kube_proxy import Binary
from bpfproxy.parity.report import Report

SERVICES = "/api/v1/services"
SLICES = "/apis/discovery.k8s.io/v1/endpointslices"
NODES = "/api/v1/nodes"


def put(directory: Path, name: str, **changes: Any) -> None:
    case = cases.case(name)
    case = msgspec.structs.replace(case, service=msgspec.structs.replace(case.service, **changes))
    manifests.write(directory, name, manifests.objects(case))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    manifests.write(tmp_path, "nodes", manifests.nodes())
    for name in ("cluster-ip", "headless", "external-name", "other-proxy"):
        manifests.write(tmp_path, name, manifests.objects(cases.case(name)))
    return tmp_path


@pytest.fixture
def namespace() -> Iterator[str]:
    with Sandbox() as sandbox:
        made = sandbox.namespace()
        with netns.inside(made):
            subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        yield made


class Client:
    """Talks to the server from inside its namespace."""

    def __init__(self, namespace: str, url: str) -> None:
        self._namespace = namespace
        self._at = url.removeprefix("http://")

    def send(
        self, path: str, method: str = "GET", body: str | None = None, headers: Mapping[str, str] = {}
    ) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection(self._at, timeout=10)
        with netns.inside(self._namespace):
            connection.connect()
        connection.request(method, path, body, headers)
        return connection.getresponse()

    def get(self, path: str) -> Any:
        answer = self.send(path)
        assert answer.status == 200
        return json.loads(answer.read())

    def names(self, path: str) -> list[str]:
        return sorted(one["metadata"]["namespace"] for one in self.get(path)["items"])

    def watch(self, path: str, version: str) -> Iterator[dict[str, Any]]:
        answer = self.send(f"{path}?watch=true&resourceVersion={version}&timeoutSeconds=10")
        assert answer.status == 200
        return map(json.loads, iter(answer.readline, b""))


@pytest.fixture
def client(directory: Path, namespace: str) -> Iterator[Client]:
    with Objects(directory) as objects, ApiServer(objects, namespace) as server:
        yield Client(namespace, server.url)


def test_objects_are_listed(client: Client) -> None:
    found = client.get(SERVICES)
    assert (found["kind"], found["apiVersion"]) == ("ServiceList", "v1")
    assert client.names(SERVICES) == ["case-cluster-ip", "case-external-name", "case-headless", "case-other-proxy"]
    assert len(client.get(SLICES)["items"]) == 8
    assert client.get(f"{NODES}/node1")["spec"]["podCIDRs"][0] == "10.244.1.0/24"
    assert client.send(f"{NODES}/node3").status == 404


@pytest.mark.parametrize(
    ("selector", "left_out"),
    [
        ("labelSelector=!service.kubernetes.io/headless,!service.kubernetes.io/service-proxy-name", "case-other-proxy"),
        ("fieldSelector=spec.clusterIP!=None", "case-headless"),
        ("fieldSelector=spec.type!=ExternalName,spec.clusterIP!=", "case-external-name"),
    ],
)
def test_selectors(client: Client, selector: str, left_out: str) -> None:
    assert set(client.names(SERVICES)) - set(client.names(f"{SERVICES}?{selector}")) == {left_out}


def test_one_node_of_two(client: Client) -> None:
    [found] = client.get(f"{NODES}?fieldSelector=metadata.name%3Dnode2")["items"]
    assert found["metadata"]["name"] == "node2"


def test_a_watch_tells_what_changed_since_the_list(client: Client, directory: Path) -> None:
    version = client.get(SERVICES)["metadata"]["resourceVersion"]
    put(directory, "cluster-ip", internal_policy="Local")
    events = client.watch(SERVICES, version)
    first = next(events)
    assert first["type"] == "MODIFIED"
    assert first["object"]["spec"]["internalTrafficPolicy"] == "Local"
    assert int(first["object"]["metadata"]["resourceVersion"]) > int(version)
    put(directory, "node-port")
    assert next(events)["type"] == "ADDED"
    (directory / "node-port.yaml").unlink()
    last = next(events)
    assert (last["type"], last["object"]["metadata"]["namespace"]) == ("DELETED", "case-node-port")


def test_a_watch_ends_when_its_time_is_over(client: Client) -> None:
    version = client.get(SERVICES)["metadata"]["resourceVersion"]
    answer = client.send(f"{SERVICES}?watch=true&resourceVersion={version}&timeoutSeconds=0.1")
    assert answer.read() == b""


def test_a_watch_of_what_is_forgotten_is_told_so(
    directory: Path, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bpfproxy.parity.api_server._HISTORY", 4)
    with Objects(directory) as objects, ApiServer(objects, namespace) as server:
        [event] = Client(namespace, server.url).watch(SERVICES, "2")
    assert (event["type"], event["object"]["code"]) == ("ERROR", 410)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/api/v1/secrets", 404),
        ("GET", f"{SERVICES}?labelSelector=app%3Dweb", 400),
        ("GET", f"{SERVICES}?watch=true&sendInitialEvents=true", 422),
        ("POST", SERVICES, 405),
        ("POST", "/apis/events.k8s.io/v1/namespaces/default/events", 201),
        ("PATCH", "/api/v1/namespaces/default/events", 201),
    ],
)
def test_what_it_does_not_know_it_says(client: Client, method: str, path: str, status: int) -> None:
    assert client.send(path, method, "{}" if method != "GET" else None).status == status


def test_a_large_body_is_turned_away(client: Client) -> None:
    headers = {"Content-Length": str(2 << 20)}
    assert client.send("/api/v1/namespaces/default/events", "POST", headers=headers).status == 413


def test_nobody_else_reaches_it(directory: Path, namespace: str) -> None:
    with Objects(directory) as objects, ApiServer(objects, namespace) as server:
        connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=5)
        with pytest.raises(ConnectionRefusedError):
            connection.connect()


def script(path: Path, says: str) -> Path:
    path.write_text(f"#!/bin/sh\necho '{says}'\n")
    path.chmod(0o755)
    return path


def test_the_binary_on_path_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert kube_proxy.find(None, "nftables") is None
    script(tmp_path / "kube-proxy", "Kubernetes v1.33.4")
    found = kube_proxy.find(None, "nftables")
    assert found == Binary(tmp_path / "kube-proxy", "v1.33.4", "nftables")
    assert found.column == "kube-proxy-nftables"


def test_another_binary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a kube-proxy"):
        kube_proxy.find(script(tmp_path / "other", "1.0"), "iptables")
    with pytest.raises(InputError, match="No such file"):
        kube_proxy.find(tmp_path / "none", "iptables")


@pytest.mark.parametrize(
    ("labels", "times", "synced"),
    [
        ([""], ["1.7e+09"], True),
        ([""], ["0"], False),
        ([], [], False),
        (['{ip_family="IPv4"}'], ["1.7e+09"], False),
        (['{ip_family="IPv4"}', '{ip_family="IPv6"}'], ["1.7e+09", "0"], False),
        (['{ip_family="IPv4"}', '{ip_family="IPv6"}'], ["1.7e+09", "1.76373e+09"], True),
    ],
)
def test_it_is_ready_when_both_families_are(labels: list[str], times: list[str], synced: bool) -> None:
    name = "kubeproxy_sync_proxy_rules_last_timestamp_seconds"
    lines = [f"{name}{label} {time}" for label, time in zip(labels, times, strict=True)]
    assert kube_proxy.synced("\n".join(["# HELP", *lines, "other 1", ""])) is synced


def test_it_is_set_as_our_agents_are(tmp_path: Path) -> None:
    agents = Agents(nodeport_addresses=("172.18.0.0/16", "fd00:172:18::/64"), masquerade_all=True)
    made = kube_proxy.configuration(Binary(tmp_path, "v1.33.4", "nftables"), agents, "node1", tmp_path / "kubeconfig")
    assert made["mode"] == "nftables"
    assert made["clusterCIDR"] == "10.244.0.0/16,fd00:10:244::/48"
    assert made["nodePortAddresses"] == ["172.18.0.0/16", "fd00:172:18::/64"]
    assert made["nftables"]["masqueradeAll"]
    assert made["featureGates"] == {"PreferSameTrafficDistribution": True}
    bare = kube_proxy.configuration(Binary(tmp_path, "v1.34.0", "iptables"), Agents(detector=False), "node1", tmp_path)
    assert (bare["clusterCIDR"], bare["nodePortAddresses"], bare["featureGates"]) == ("", [], {})


def test_the_real_one() -> None:
    if shutil.which("kube-proxy") is None:
        pytest.skip("no kube-proxy on PATH")
    options = ["--modes", "", "--cases", "cluster-ip,no-endpoints,udp-endpoint-gone", "-o", "json"]
    done = subprocess.run(
        [sys.executable, "-P", "-m", "bpfproxy", "parity", *options], capture_output=True, check=False
    )
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()
    report = msgspec.json.decode(done.stdout, type=Report)
    assert [one.mode for one in report.modes] == ["kube-proxy-iptables"]
    assert [one.missing for one in report.modes] == [""]
    assert len(report.cells) == 3
