"""As much of an API server as kube-proxy asks for: it lists and watches Services, EndpointSlices, Nodes and
ServiceCIDRs, and throws events away. The objects are manifests in a directory, which is followed.

HTTP without TLS or credentials, on the loopback address of one network namespace.
"""

from __future__ import annotations

import contextlib
import json
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import parse_qs, urlsplit

import yaml

from bpfproxy.lab import netns
from bpfproxy.lab.manifests import Object

_COLLECTIONS: Final = {
    "/api/v1/services": ("v1", "Service"),
    "/api/v1/nodes": ("v1", "Node"),
    "/apis/discovery.k8s.io/v1/endpointslices": ("discovery.k8s.io/v1", "EndpointSlice"),
    "/apis/networking.k8s.io/v1/servicecidrs": ("networking.k8s.io/v1", "ServiceCIDR"),
}
_NODE: Final = re.compile(r"/api/v1/nodes/([^/]+)")
_EVENTS: Final = re.compile(r"/api(s/events\.k8s\.io)?/v1/namespaces/[^/]+/events")
_FIELD: Final = re.compile(r"([\w.]+)(=|!=)(.*)")
_FOLLOWED_EVERY: Final = 0.02
"""Seconds."""
_HISTORY: Final = 4096
"""Changes that a watch can begin with."""
_LONGEST_WATCH: Final = 600
_LARGEST_BODY: Final = 1 << 20

Key = tuple[str, str, str]
"""Kind, namespace, name."""


class RequestError(Exception):
    """A request that gets a Status."""

    def __init__(self, code: HTTPStatus, reason: str) -> None:
        super().__init__(f"{code.value} {reason}")
        self.code, self.reason = code, reason


@dataclass(frozen=True)
class Change:
    """What a watch tells: ADDED, MODIFIED or DELETED, with the object's version after it."""

    version: int
    type: str
    object: Object


class Objects:
    """The manifests of a directory, and `more`, as an API server keeps them: versioned, with a history. A context
    manager, which follows the directory meanwhile. What is read of it may be read by several threads."""

    def __init__(self, directory: Path, more: tuple[Object, ...] = ()) -> None:
        self._directory = directory
        self._more = more
        self._files: dict[str, tuple[int, dict[Key, Object]]] = {}
        """By name: change time, and what is in it."""
        self._objects: dict[Key, Object] = {}
        self._history: deque[Change] = deque(maxlen=_HISTORY)
        self._version = 1
        self._changed = threading.Condition()
        self._end = threading.Event()
        self._follower = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> Self:
        self._read()
        self._follower.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end.set()
        self._follower.join()
        with self._changed:
            self._changed.notify_all()

    def _follow(self) -> None:
        while not self._end.wait(_FOLLOWED_EVERY):
            self._read()

    def _read(self) -> None:
        files: dict[str, tuple[int, dict[Key, Object]]] = {}
        for path in self._directory.glob("*.yaml"):
            with contextlib.suppress(FileNotFoundError):  # it went meanwhile
                changed = path.stat().st_mtime_ns
                known = self._files.get(path.name)
                files[path.name] = known if known and known[0] == changed else (changed, _load(path))
        if files != self._files or self._version == 1:
            self._files = files
            wanted = {_key(one): one for one in self._more}
            for _, objects in files.values():
                wanted |= objects
            self._take(wanted)

    def _take(self, wanted: dict[Key, Object]) -> None:
        with self._changed:
            for key in self._objects.keys() - wanted.keys():
                self._tell("DELETED", self._objects.pop(key))
            for key, one in wanted.items():
                old = self._objects.get(key)
                if old is None or _bare(old) != one:
                    self._objects[key] = self._tell("MODIFIED" if old else "ADDED", one)
            self._changed.notify_all()

    def _tell(self, kind: str, one: Object) -> Object:
        self._version += 1
        made = {**one, "metadata": {**one["metadata"], "resourceVersion": str(self._version)}}
        self._history.append(Change(self._version, kind, made))
        return made

    def list(self, kind: str) -> tuple[int, list[Object]]:
        """The version of the whole, and the objects of a kind."""
        with self._changed:
            return self._version, [one for (of, _, _), one in self._objects.items() if of == kind]

    def watch(self, kind: str, version: int, seconds: float) -> Iterator[Change]:
        """Changes of a kind after `version`, for so long. Raises RequestError if they are not known any more."""
        end = time.monotonic() + seconds
        while True:
            with self._changed:
                if version < self._version - len(self._history):
                    raise RequestError(HTTPStatus.GONE, "Expired")
                news = [one for one in self._history if one.version > version]
                if not news and not self._changed.wait(max(0, end - time.monotonic())):
                    return
            if self._end.is_set():
                return
            for one in news:
                version = one.version
                if one.object["kind"] == kind:
                    yield one


def _load(path: Path) -> dict[Key, Object]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return {_key(one): one for one in yaml.load_all(path.read_bytes(), loader)}


def _key(one: Object) -> Key:
    return one["kind"], one["metadata"].get("namespace", ""), one["metadata"]["name"]


def _bare(one: Object) -> Object:
    metadata = {name: value for name, value in one["metadata"].items() if name != "resourceVersion"}
    return {**one, "metadata": metadata}


class ApiServer:
    """A context manager, which serves `objects` in a network namespace at `url`."""

    def __init__(self, objects: Objects, namespace: str) -> None:
        with netns.inside(namespace):
            self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(objects))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def _handler(objects: Objects) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answering(self._get)

        def do_POST(self) -> None:
            self._answering(self._post)

        do_PATCH = do_POST  # noqa: N815

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

        def _answering(self, answer: Callable[[], None]) -> None:
            try:
                answer()
            except RequestError as error:
                self._send(_status(error), error.code)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True

        def _get(self) -> None:
            path, query = urlsplit(self.path).path, parse_qs(urlsplit(self.path).query)
            if node := _NODE.fullmatch(path):
                found = [one for one in objects.list("Node")[1] if one["metadata"]["name"] == node[1]]
                if not found:
                    raise RequestError(HTTPStatus.NOT_FOUND, "NotFound")
                self._send(found[0])
                return
            if path not in _COLLECTIONS:
                raise RequestError(HTTPStatus.NOT_FOUND, "NotFound")
            group, kind = _COLLECTIONS[path]
            asked = Selector(query)
            if "sendInitialEvents" in query:  # a client that streams lists goes back to plain ones
                raise RequestError(HTTPStatus.UNPROCESSABLE_ENTITY, "Invalid")
            if query.get("watch", ["false"])[0] in ("true", "1"):
                self._watch(kind, asked, query)
                return
            version, found = objects.list(kind)
            self._send(
                {
                    "apiVersion": group,
                    "kind": f"{kind}List",
                    "metadata": {"resourceVersion": str(version)},
                    "items": [one for one in found if asked.matches(one)],
                }
            )

        def _watch(self, kind: str, asked: Selector, query: dict[str, list[str]]) -> None:
            seconds = min(float(query.get("timeoutSeconds", ["60"])[0]), _LONGEST_WATCH)
            version = int(query.get("resourceVersion", ["0"])[0] or 0)
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", "application/json")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            try:
                for change in objects.watch(kind, version, seconds):
                    if asked.matches(change.object):
                        self._chunk({"type": change.type, "object": change.object})
            except RequestError as error:
                self._chunk({"type": "ERROR", "object": _status(error)})
            self.wfile.write(b"0\r\n\r\n")

        def _chunk(self, content: Object) -> None:
            data = json.dumps(content).encode() + b"\n"
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
            self.wfile.flush()

        def _post(self) -> None:
            size = int(self.headers.get("Content-Length", "0"))
            if size > _LARGEST_BODY:
                self.close_connection = True
                raise RequestError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "RequestEntityTooLarge")
            body = self.rfile.read(size)
            if not _EVENTS.match(urlsplit(self.path).path):
                raise RequestError(HTTPStatus.METHOD_NOT_ALLOWED, "MethodNotAllowed")
            self._send(json.loads(body), HTTPStatus.CREATED)

        def _send(self, content: Object, code: HTTPStatus = HTTPStatus.OK) -> None:
            data = json.dumps(content).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    return Handler


class Selector:
    """The selectors that kube-proxy uses: `labelSelector=!KEY,...` and `fieldSelector=A.B=VALUE,C.D!=VALUE,...`. Raises
    RequestError for others."""

    def __init__(self, query: dict[str, list[str]]) -> None:
        labels = [term for text in query.get("labelSelector", []) for term in text.split(",")]
        fields = [_FIELD.fullmatch(term) for text in query.get("fieldSelector", []) for term in text.split(",")]
        if not all(term.startswith("!") for term in labels) or not all(fields):
            raise RequestError(HTTPStatus.BAD_REQUEST, "BadRequest")
        self._without = {term[1:] for term in labels}
        self._fields = [(field[1].split("."), field[2] == "=", field[3]) for field in fields if field]

    def matches(self, one: Object) -> bool:
        """Whether it is one of those that were asked for."""
        return not (self._without & one["metadata"].get("labels", {}).keys()) and all(
            (_at(one, path) == value) == equal for path, equal, value in self._fields
        )


def _at(one: Object, path: list[str]) -> object:
    """The value of a field; empty where there is none."""
    found: Any = one
    for name in path:
        found = found.get(name, "")
        if not isinstance(found, dict):
            break
    return found


def _status(error: RequestError) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Status",
        "status": "Failure",
        "reason": error.reason,
        "message": str(error),
        "code": error.code.value,
    }
