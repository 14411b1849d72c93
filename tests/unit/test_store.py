"""Events in, the Services they touch out."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from bpfproxy.model.address import parse_address
from bpfproxy.model.event import Object, ObjectKey, Update
from bpfproxy.model.service import Endpoint, EndpointSlice, Node, ObjectName, Service
from bpfproxy.store import Store
from tests.unit.strategies import SERVICES, SLICES, services, slices

WEB, DNS = ObjectName("ns", "web"), ObjectName("ns", "dns")
SERVICE = Service(WEB)
SLICE = EndpointSlice(ObjectName("ns", "web-1"), WEB, 4, endpoints=(Endpoint(parse_address("10.0.0.1")),))
NODE = Node("n1", zone="east")


def filled() -> Store:
    store = Store()
    store.update(Update((SERVICE, SLICE, NODE)))
    store.take()
    return store


def key(item: Object) -> ObjectKey:
    if isinstance(item, Node):
        return ObjectKey("Node", ObjectName("", item.name))
    return ObjectKey("Service" if isinstance(item, Service) else "EndpointSlice", item.name)


def test_what_was_put_in_can_be_looked_at() -> None:
    store = filled()
    assert (store.service(WEB), store.slices(WEB), store.node("n1")) == (SERVICE, (SLICE,), NODE)
    assert list(store.services()) == [SERVICE]
    assert (store.service(DNS), store.slices(DNS), store.node("n2")) == (None, (), None)


def test_each_kind_of_change_names_its_service() -> None:
    store = Store()
    store.update(Update((SERVICE, SLICE)))
    assert store.take().services == (WEB,)
    store.update(Update((replace(SERVICE, internal_local=True),)))
    assert store.take().services == (WEB,)
    store.update(Update((replace(SLICE, endpoints=()),)))
    assert store.take().services == (WEB,)
    store.update(Update(removed=(key(SLICE),)))
    assert store.take().services == (WEB,)
    store.update(Update(removed=(key(SERVICE),)))
    assert store.take().services == (WEB,)
    assert store.take().services == ()


def test_an_equal_object_is_no_change() -> None:
    store = filled()
    store.update(Update((replace(SERVICE), replace(SLICE), replace(NODE)), removed=(ObjectKey("Service", DNS),)))
    changes = store.take()
    assert (changes.services, changes.nodes, changes.service_events, changes.endpoint_events) == ((), frozenset(), 0, 0)


def test_a_reverted_change_is_no_work() -> None:
    store = filled()
    for changed in (replace(SERVICE, internal_local=True), replace(SLICE, endpoints=()), replace(NODE, zone="west")):
        store.update(Update((changed,)))
    store.update(Update((SERVICE, SLICE, NODE)))
    changes = store.take()
    assert (changes.services, changes.nodes) == ((), frozenset())
    store.update(Update(removed=(key(SERVICE), key(SLICE))))
    store.update(Update((SERVICE, SLICE)))
    assert store.take().services == ()


def test_what_came_and_went_is_no_work() -> None:
    store = Store()
    store.update(Update((SERVICE, SLICE)))
    store.update(Update(removed=(key(SERVICE), key(SLICE))))
    assert store.take().services == ()
    assert store.slices(WEB) == ()


def test_a_slice_that_moves_dirties_both_services() -> None:
    store = filled()
    store.update(Update((replace(SLICE, service=DNS),)))
    assert set(store.take().services) == {WEB, DNS}
    assert (store.slices(WEB), len(store.slices(DNS))) == ((), 1)


def test_slices_are_sorted_by_name() -> None:
    store = Store()
    items = [replace(SLICE, name=ObjectName("ns", name)) for name in ("c", "a", "d", "b")]
    store.update(Update(tuple(items)))
    assert [item.name.name for item in store.slices(WEB)] == ["a", "b", "c", "d"]
    store.update(Update((replace(items[1], family=6),), removed=(key(items[0]),)))
    assert [item.name.name for item in store.slices(WEB)] == ["a", "b", "d"]


def test_an_ignored_slice_is_none() -> None:
    store = filled()
    store.update(Update((replace(SLICE, ignored=True),)))
    assert store.take().services == (WEB,)
    assert store.slices(WEB) == ()
    store.update(Update((replace(SLICE, ignored=True, endpoints=()),)))
    assert store.take().services == ()


def test_nodes_are_named() -> None:
    store = filled()
    store.update(Update((replace(NODE, zone="west"), Node("n2"))))
    assert store.take().nodes == {"n1", "n2"}
    store.update(Update(removed=(key(NODE),)))
    assert store.take().nodes == {"n1"}
    assert store.node("n1") is None


def test_complete_stays() -> None:
    store = Store()
    assert not store.complete
    store.update(Update((SERVICE,)))
    assert not store.complete
    store.update(Update(complete=True))
    store.update(Update())
    assert store.complete


def test_events_are_counted() -> None:
    store = filled()
    assert (store.service_events_total, store.endpoint_events_total) == (1, 1)
    for timeout in (1, 2, 0):
        store.update(Update((replace(SERVICE, affinity_timeout=timeout),)))
    store.update(Update(removed=(key(SLICE),)))
    assert (store.service_events_pending, store.endpoint_events_pending) == (3, 1)
    changes = store.take()
    assert (changes.service_events, changes.endpoint_events) == (3, 1)
    assert (store.service_events_pending, store.endpoint_events_pending) == (0, 0)
    assert (store.service_events_total, store.endpoint_events_total) == (4, 2)


EVENTS = st.one_of(
    services(),
    slices(),
    st.sampled_from([ObjectKey("Service", name) for name in SERVICES]),
    st.sampled_from([ObjectKey("EndpointSlice", name) for name in SLICES]),
    st.just("take"),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(EVENTS, max_size=20))
def test_dirty_is_exactly_what_differs(events: list[Service | EndpointSlice | ObjectKey | str]) -> None:
    store = Store()
    plain: dict[ObjectKey, Object] = {}
    taken: dict[ObjectKey, Object] = {}
    for event in [*events, "take"]:
        if isinstance(event, ObjectKey):
            store.update(Update(removed=(event,)))
            plain.pop(event, None)
        elif isinstance(event, Service | EndpointSlice):
            store.update(Update((event,)))
            plain[key(event)] = event
        else:
            assert set(store.take().services) == differing(taken, plain)
            taken = dict(plain)
    for name in SERVICES:
        assert store.service(name) == plain.get(ObjectKey("Service", name))
        mine = [item for item in plain.values() if isinstance(item, EndpointSlice) and item.service == name]
        assert list(store.slices(name)) == sorted((s for s in mine if not s.ignored), key=lambda item: item.name)


def differing(before: dict[ObjectKey, Object], now: dict[ObjectKey, Object]) -> set[ObjectName]:
    touched = set()
    for name in before.keys() | now.keys():
        versions = [before.get(name), now.get(name)]
        versions = [None if isinstance(v, EndpointSlice) and v.ignored else v for v in versions]
        if versions[0] != versions[1]:
            for version in versions:
                if isinstance(version, Service):
                    touched.add(version.name)
                elif isinstance(version, EndpointSlice):
                    touched.add(version.service)
    return touched
