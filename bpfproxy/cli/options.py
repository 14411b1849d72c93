"""Options made from the fields of `Settings`: name, type, default, environment variable and help text."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable, Sequence
from functools import cache, wraps
from pathlib import Path
from typing import Any, Final, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import click

from bpfproxy import config
from bpfproxy.config import Settings

Command = TypeVar("Command", bound=Callable[..., Any])


class _Words(click.ParamType[str]):
    """One or several values with commas between; the option may be given several times."""

    name = "text"
    envvar_list_splitter = ","


_PLAIN: Final[dict[Any, click.ParamType[Any]]] = {
    int: click.INT,
    float: click.FLOAT,
    str: click.STRING,
    Path: click.Path(path_type=Path),
}
_METAVARS: Final = {
    "manifests": "PATH,...",
    "cluster_cidr": "CIDR,...",
    "service_cidr": "CIDR,...",
    "nodeport_addresses": "CIDR,...",
    "node_name": "NAME",
    "masquerade_bit": "BIT",
    "device": "NAME,...",
    "pod_device": "NAME,...",
    "cgroup": "DIR",
    "state_dir": "DIR",
    "snat_ports": "FIRST-LAST",
    "ipvs_exclude_cidrs": "CIDR,...",
}


def settings_options(*names: str) -> Callable[[Command], Command]:
    """Give a command the options of these fields (none: of all), and `settings: Settings` in their place."""
    fields = [field for field in dataclasses.fields(Settings) if not names or field.name in names]

    def decorate(command: Command) -> Command:
        @wraps(command)
        def wrapper(*args: Any, **values: Any) -> Any:
            settings = Settings(**{field.name: values.pop(field.name) for field in fields})
            return command(*args, settings=settings, **values)

        decorated: Any = wrapper
        for field in reversed(fields):
            decorated = _option(field)(decorated)
        return decorated  # type: ignore[no-any-return]

    return decorate


def output_option(command: Command) -> Command:
    """Give a command `-o`, as the parameter `as_json: bool`."""
    return click.option(
        "-o",
        "--output",
        "as_json",
        type=click.Choice(["table", "json"]),
        default="table",
        show_default=True,
        callback=lambda _context, _option, value: value == "json",
        help="A table for people, or JSON for programs.",
    )(command)


@cache
def _documentation() -> dict[str, str]:
    return config.documentation()


@cache
def _hints() -> dict[str, Any]:
    return get_type_hints(Settings)


def _option(field: dataclasses.Field[Any]) -> Callable[[Command], Command]:
    name, hint, flag = field.name, _hints()[field.name], config.flag(field.name)
    more: dict[str, Any] = {}
    if hint is bool:
        flag = f"{flag}/--no-{flag.removeprefix('--')}"
    elif get_origin(hint) is tuple:
        element = get_args(hint)[0]
        more = {"multiple": True, "type": _Words(), "callback": lambda _c, _o, values: _split(values, element)}
    elif get_origin(hint) is Literal:
        more = {"type": click.Choice(get_args(hint))}
    else:
        more = {"type": _PLAIN[_without_none(hint)]}
    return click.option(
        flag,
        name,
        default=None if more.get("multiple") else field.default,
        show_default=field.default not in ((), "", None) or hint is bool,
        envvar=config.environment_variable(name),
        metavar=_METAVARS.get(name),
        help=_documentation()[name].replace("`", "'"),
        **more,
    )


def _split(values: Sequence[str], element: Callable[[str], Any]) -> tuple[Any, ...]:
    return tuple(element(part.strip()) for value in values for part in value.split(",") if part.strip())


def _without_none(hint: Any) -> Any:
    if get_origin(hint) in (Union, types.UnionType):
        return next(part for part in get_args(hint) if part is not type(None))
    return hint
