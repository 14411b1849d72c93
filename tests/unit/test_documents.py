"""Files to documents: Lists, YAML and JSON as people and machines write them, and hostile ones."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bpfproxy.errors import InputError
from bpfproxy.model.event import ObjectKey
from bpfproxy.sources import yamltree
from bpfproxy.sources.manifest import Manifest, decode_manifest
from tests.unit.manifests import FORMATS, NAME, decode, faults, node, ports, service, slice_

# ---- documents ---------------------------------------------------------------------------------------------------


def keys(manifest: Manifest) -> list[str]:
    return sorted(str(key) for key in manifest.objects)


def test_multi_document_yaml_counts_every_document() -> None:
    text = "---\n# a comment\n---\n" + yaml.safe_dump(service()) + "---\n---\n" + yaml.safe_dump(slice_()) + "...\n"
    manifest = decode(text)
    assert keys(manifest) == ["EndpointSlice shop/web-1", "Service shop/web"]
    assert manifest.places[ObjectKey("Service", NAME)] == "document 2"


@pytest.mark.parametrize("form", FORMATS)
def test_lists(form: str) -> None:
    bare_service = {key: value for key, value in service().items() if key not in ("kind", "apiVersion")}
    bare_slice = {key: value for key, value in slice_().items() if key not in ("kind", "apiVersion")}
    trees = [
        {"apiVersion": "v1", "kind": "List", "items": [node(), {"kind": "Pod", "apiVersion": "v1"}]},
        {"apiVersion": "v1", "kind": "ServiceList", "items": [bare_service]},
        {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSliceList", "items": [bare_slice]},
        {"apiVersion": "v1", "kind": "NodeList", "items": None},
    ]
    text = "".join(map(json.dumps, trees)) if form == "json" else yaml.safe_dump_all(trees)
    assert keys(decode(text, f"m.{form}")) == ["EndpointSlice shop/web-1", "Node n1", "Service shop/web"]


@pytest.mark.parametrize("separator", ["", "\n", " \r\n\t"])
def test_json_documents_one_after_another(separator: str) -> None:
    text = separator.join([json.dumps(service()), json.dumps(slice_(), indent=1), json.dumps(node())])
    assert len(decode(text, "m.json").objects) == 3


@pytest.mark.parametrize(
    "text", [json.dumps(service()), "\ufeff" + json.dumps(service()), json.dumps(service()) + "\n---\n"]
)
def test_json_in_a_yaml_file(text: str) -> None:
    assert keys(decode(text)) == ["Service shop/web"]


@pytest.mark.parametrize("path", ["m.yaml", "m.json"])
@pytest.mark.parametrize("data", [b"", b"\n \n", b"\xef\xbb\xbf"])
def test_empty_file(data: bytes, path: str) -> None:
    assert decode(data, path).objects == {}


def test_each_fault_of_a_file_is_one_line() -> None:
    items = [service({"type": "x"}), service(), slice_(addressType="x"), service()]
    text = yaml.safe_dump({"apiVersion": "v1", "kind": "List", "items": items}) + "---\na: [\n"
    found = faults(text, "dir/m.yaml")
    assert [line.split(": ")[1] for line in found] == [
        "document 1, items[0]",
        "document 1, items[2]",
        "document 1, items[3]",
        "document 2",
    ]
    assert "Service shop/web: metadata.name: expected each object once" in found[2]
    assert "document 1, items[1]" in found[2]
    assert "line " in found[3]


@pytest.mark.parametrize(
    ("first", "second", "text"),
    [
        (
            ports({"port": 80, "nodePort": 30080}, type="NodePort"),
            ports({"port": 81, "nodePort": 30080}, type="LoadBalancer"),
            "spec.ports[0].nodePort: expected one of its own, 30080/TCP is already that of Service shop/web",
        ),
        (
            ports({"port": 80, "nodePort": 31000}, type="NodePort"),
            service({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 31000}),
            "spec.healthCheckNodePort: expected one of its own, 31000/TCP is already that of Service shop/web",
        ),
        (
            service({"clusterIP": "10.96.0.1"}),
            service({"clusterIP": "10.96.0.1"}),
            "spec.clusterIPs: expected one of its own, 10.96.0.1 is already that of Service shop/web",
        ),
    ],
)
def test_claimed_twice(first: dict[str, Any], second: dict[str, Any], text: str) -> None:
    second["metadata"]["name"] = "other"
    (line,) = faults(yaml.safe_dump_all([first, second]))
    assert line.startswith("m.yaml: document 2: Service shop/other: ")
    assert text in line
    assert line.endswith("document 1")


# ---- YAML --------------------------------------------------------------------------------------------------------


def tree_of(text: str) -> object:
    (tree,) = yamltree.documents(text.encode())
    return tree


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("80", 80),
        ("-1", -1),
        ("1_000", 1000),
        ("010", 8),
        ("0o10", 8),
        ("0x1F", 31),
        ("0b11", 3),
        ("0", 0),
        ("08", 8.0),
        ("1e3", 1000.0),
        ("1.5", 1.5),
        (".inf", float("inf")),
        ("1:30", "1:30"),
        ("10.0.0.1", "10.0.0.1"),
        ("fd00::1", "fd00::1"),
        ("0x", "0x"),
        ("0x_", "0x_"),
        ("0o_", "0o_"),
        ("", None),
        ("-x", "-x"),
        ("0_", 0),
        ("2024-01-01", "2024-01-01"),
        ("2024-01-01T00:00:00Z", "2024-01-01T00:00:00Z"),
        ("yes", True),
        ("No", False),
        ("on", True),
        ("y", "y"),
        ("~", None),
        ("'no'", "no"),
        ('"80"', "80"),
        ("!!str 80", "80"),
        ("!!int '80'", 80),
        ("! 80", "80"),
        ("=", "="),
        ("<<", "<<"),
    ],
)
def test_scalars_are_read_as_kubernetes_reads_them(text: str, value: object) -> None:
    found = tree_of(f"a: {text}")
    assert found == {"a": value}
    assert type(found) is dict
    assert type(found["a"]) is type(value)


def test_keys_are_text() -> None:
    assert tree_of("on: 1\n5: 2\n~: 3\n? a\n: 4") == {"on": 1, "5": 2, "~": 3, "a": 4}


def test_aliases_and_merges() -> None:
    text = "a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: {<<: [{y: 4}, *a]}\nd: [*a, &s v, *s]\n&k e: *k\n"
    assert tree_of(text) == {
        "a": {"x": 1, "y": 2},
        "b": {"x": 1, "y": 3},
        "c": {"x": 1, "y": 4},
        "d": [{"x": 1, "y": 2}, "v", "v"],
        "e": "e",
    }


LAUGHS = "a0: &a0 [l, l, l, l, l, l, l, l, l, l]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "line 3, column 1: key 'a' stands twice"),
        ("a: {b: 1, b: 2}", "key 'b' stands twice"),
        ("{a: 1, 'a': 2}", "key 'a' stands twice"),
        ("[a]: 1", "expected a scalar as key"),
        ("? {a: b}\n: 1", "expected a scalar as key"),
        ("a: &a [*a]", "alias *a without a finished anchor"),
        ("a: *b", "alias *b without a finished anchor"),
        ("a: !!python/object:os.system x", "unknown tag tag:yaml.org,2002:python/object:os.system"),
        ("a: !mine [x]", "unknown tag !mine"),
        ("a: !!int x", "expected int, not 'x'"),
        ("<<: 5", "expected a mapping, or a list of them, to merge"),
        ("a: " + "9" * 5000, "too many digits"),
        ("[" * 100_000, "nested deeper than 200"),
        ("- " * 100_000, "nested deeper than 200"),
        ("{a: " * 1000, "nested deeper than 200"),
        (LAUGHS, "aliases stand for more than"),
        (f"a: &a {'x' * 1_000_000}\nb: [{'*a, ' * 100}]", "aliases stand for more than"),
        (f"- ? &k {'x' * 1_000_000}\n  : 1\n" + "- {*k : 1}\n" * 100, "aliases stand for more than"),
        ("- &a0 []\n" + "".join(f"- &a{n} [*a{n - 1}]\n" for n in range(1, 1300)), "nested too deeply"),
        ("a: b: c", "line 1, column 5: mapping values are not allowed"),
        ("\ta: b", "cannot start any token"),
        ("a: \x00", "control characters are not allowed"),
        ("%YAML 9.9\n---\na", "found incompatible YAML document"),
    ],
)
def test_hostile_yaml(text: str, message: str) -> None:
    (line,) = faults(text)
    assert line.startswith("m.yaml: document 1: ")
    assert message in line


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"kind": "List", "items": [' + b"[" * 100_000, "document 1: nested too deeply"),
        (b"[" * 100_000, "document 1: expected object, got array"),
        (b'{"a": ' * 100_000, "document 1: nested too deeply"),
        (b'{"kind": ' + b"9" * 10_000 + b"}", "document 1: "),
        (b'{"kind": "\xff"}', "document 1: expected UTF-8 text, found byte 0xff at 10"),
        (b'{"kind": "Pod",}', "document 1: line 1, column 16"),
        (b'{"kind": "Pod"}\n{"kind"', "document 2: line 2, column 8: malformed JSON"),
        (b"\x00\x01\x02", "document 1: line 1, column 1: malformed JSON"),
        (b"kind: Service", "document 1: line 1, column 1: malformed JSON"),
        (b'{"kind": "Service", "apiVersion": "v1", "metadata": {"name": "\\ud800"}}', "document 1: "),
    ],
)
def test_hostile_json(data: bytes, message: str) -> None:
    (line,) = faults(data, "m.json")
    assert message in line
    assert line.isprintable()


@pytest.mark.parametrize(
    "data", [b"\xff\xfe\x00", b"\x80abc", b"a: \xc3\x28", bytes(range(256)), b"\x7fELF\x02\x01\x01\x00"]
)
def test_binary(data: bytes) -> None:
    (line,) = faults(data)
    assert line.isprintable()


# ---- anything at all ---------------------------------------------------------------------------------------------

_leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["10.0.0.1", "fd00::1", "None", "TCP", "ClientIP", "Local", "a", "IPv4", "10.0.0.0/8"])
)
_names = st.sampled_from(
    re.findall(
        r"\w+",
        "metadata name namespace labels annotations deletionTimestamp spec ports protocol port nodePort type clusterIP "
        "clusterIPs externalIPs loadBalancerSourceRanges externalTrafficPolicy sessionAffinity sessionAffinityConfig "
        "clientIP timeoutSeconds healthCheckNodePort status loadBalancer ingress ip ipMode addressType endpoints "
        "addresses conditions ready nodeName hints forZones taints key address items kind apiVersion",
    )
)
_trees = st.recursive(
    _leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_names, inner, max_size=6), max_leaves=25
)
_objects = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(["Service", "EndpointSlice", "Node", "List", "ServiceList", "Pod"]),
        "apiVersion": st.sampled_from(["v1", "discovery.k8s.io/v1"]),
    },
    optional={"metadata": _trees, "spec": _trees, "status": _trees, "endpoints": _trees, "items": st.lists(_trees)},
)


def attempt(data: bytes, path: str) -> None:
    try:
        decode_manifest(data, path)
    except InputError as error:
        for line in str(error).splitlines():
            assert line.startswith(f"{path}: document ")
            assert line.isprintable()


@given(_trees | _objects)
@settings(max_examples=400, deadline=None)
def test_any_tree(tree: object) -> None:
    attempt(json.dumps(tree).encode(), "m.json")
    attempt(yaml.safe_dump(tree, allow_unicode=True).encode(errors="surrogatepass"), "m.yaml")


@given(st.binary(max_size=200) | st.text(alphabet="abk:-[]{}&*!|>'\"%@\n\t #,?<~01", max_size=80).map(str.encode))
@example(b"&a a: &b\n- *a\n- *b")
@example(b"{? , : }")
@settings(max_examples=1500, deadline=None)
def test_any_bytes(data: bytes) -> None:
    attempt(data, "m.json")
    attempt(data, "m.yaml")
