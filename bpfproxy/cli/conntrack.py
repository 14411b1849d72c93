"""`bpfproxy conntrack`: the flows that the packet level of a running node knows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import wraps
from itertools import islice
from typing import Any, TypeVar

import click

from bpfproxy import api
from bpfproxy.cli import output
from bpfproxy.cli.options import output_option, settings_options
from bpfproxy.config import Settings
from bpfproxy.model.address import format_address, format_endpoint
from bpfproxy.model.flow import Flow, FlowFilter, Place, State
from bpfproxy.model.service import Protocol

Command = TypeVar("Command", bound=Callable[..., Any])

_LINES_AT_ONCE = 4096
_FILTERS = (
    click.option("--family", type=click.Choice(["4", "6"]), help="IPv4 or IPv6."),
    click.option("--protocol", type=click.Choice([p.name.lower() for p in Protocol], case_sensitive=False)),
    click.option("--state", type=click.Choice([s.label for s in State], case_sensitive=False)),
    click.option("--service", metavar="NAME", default="", help="NAMESPACE/NAME or NAME in 'default', perhaps :PORT."),
    *(
        click.option(f"--{name}", metavar="PLACE", help=f"{text} ADDRESS, ADDRESS:PORT or a range.")
        for name, text in (
            ("client", "Who began the flow:"),
            ("vip", "Whom the client talks to:"),
            ("backend", "Where the flow goes:"),
        )
    ),
)


def _filter_options(command: Command) -> Command:
    """Options that choose flows, as the parameter `wanted: FlowFilter`."""

    @wraps(command)
    def wrapper(
        *args: Any,
        family: str | None,
        protocol: str | None,
        state: str | None,
        service: str,
        client: str | None,
        vip: str | None,
        backend: str | None,
        **values: Any,
    ) -> Any:
        client_place, vip_place, backend_place = (
            None if text is None else Place.parse(text) for text in (client, vip, backend)
        )
        wanted = FlowFilter(
            family=None if family is None else 4 if family == "4" else 6,
            protocol=None if protocol is None else Protocol[protocol.upper()],
            state=None if state is None else State[state.upper()],
            service=f"default/{service}" if service and "/" not in service else service,
            client=client_place,
            vip=vip_place,
            backend=backend_place,
        )
        return command(*args, wanted=wanted, **values)

    decorated: Any = wrapper
    for option in reversed(_FILTERS):
        decorated = option(decorated)
    return decorated  # type: ignore[no-any-return]


@click.group()
def conntrack() -> None:
    """Flows that the packet level of a running node knows, in mode ebpf."""


@conntrack.command("list")
@_filter_options
@settings_options("state_dir")
@output_option
def list_flows(wanted: FlowFilter, settings: Settings, as_json: bool) -> None:
    """List flows, a line each; those of which all options hold.

    As `conntrack -L` prints them: protocol, seconds until the flow is forgotten, state, the client's packets, the
    backend, and the backend's packets where the source is translated. Times are in seconds.
    """
    flows = api.list_flows(settings.state_dir, wanted)
    if as_json:
        output.write_json(flows)
        return
    lines = map(line_of, flows)
    while some := list(islice(lines, _LINES_AT_ONCE)):
        output.write("".join(f"{line}\n" for line in some))


@conntrack.command()
@_filter_options
@settings_options("state_dir")
@output_option
def flush(wanted: FlowFilter, settings: Settings, as_json: bool) -> None:
    """Forget flows: those of which all options hold, without options all.

    A client that goes on gets a new flow, where it may: a connection of TCP may break.
    """
    count = api.flush_flows(settings.state_dir, wanted)
    if as_json:
        output.write_json({"flushed": count})
    else:
        output.write(f"{count} flow{'' if count == 1 else 's'} flushed\n")


def line_of(flow: Flow) -> str:
    """A flow in the look of conntrack(8)."""
    words = [f"{flow.protocol.name.lower():<8} {flow.protocol} {flow.expires:.0f}"]
    if flow.protocol is Protocol.TCP:
        words.append(flow.state.label)
    words += _tuple(flow.client, flow.client_port, flow.vip, flow.vip_port)
    if flow.state is State.UNREPLIED:
        words.append("[UNREPLIED]")
    words.append(f"backend={format_endpoint(flow.backend, flow.backend_port)}")
    if flow.source_translated:
        words += _tuple(flow.backend, flow.backend_port, flow.source, flow.source_port)
    marks = (("[DIRECT]", flow.direct), ("[LOCAL]", flow.local), ("[ORPHAN]", flow.orphan))
    words += [mark for mark, holds in marks if holds]
    words.append(f"age={flow.age:.0f}")
    if not flow.direct:
        words.append(f"service={flow.service or '-'}")
    return " ".join(words)


def _tuple(source: bytes, source_port: int, destination: bytes, destination_port: int) -> Iterable[str]:
    return (
        f"src={format_address(source)}",
        f"dst={format_address(destination)}",
        f"sport={source_port}",
        f"dport={destination_port}",
    )
