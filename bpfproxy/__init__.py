"""A Kubernetes service proxy for one Linux node: a Python control plane for C BPF programs.

The public names below are loaded when they are first used, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bpfproxy.agent import Agent
    from bpfproxy.api import (
        Plan,
        RenderedRow,
        check,
        cleanup,
        flush_flows,
        list_flows,
        open_engine,
        open_view,
        plan_manifests,
        plan_objects,
        read_status,
        render_plan,
        renderer,
        run,
        serve,
    )
    from bpfproxy.config import Settings
    from bpfproxy.errors import BpfproxyError
    from bpfproxy.model.flow import Flow, FlowFilter, Place
    from bpfproxy.sources.files import load_manifests

    __version__: str

__all__ = [
    "Agent",
    "BpfproxyError",
    "Flow",
    "FlowFilter",
    "Place",
    "Plan",
    "RenderedRow",
    "Settings",
    "__version__",
    "check",
    "cleanup",
    "flush_flows",
    "list_flows",
    "load_manifests",
    "open_engine",
    "open_view",
    "plan_manifests",
    "plan_objects",
    "read_status",
    "render_plan",
    "renderer",
    "run",
    "serve",
]

_MODULES = {
    "Agent": "agent",
    "BpfproxyError": "errors",
    "Flow": "model.flow",
    "FlowFilter": "model.flow",
    "Place": "model.flow",
    "Settings": "config",
}
"""Where the public names are that `bpfproxy.api` does not hold."""


def __getattr__(name: str) -> Any:
    value: Any
    if name == "__version__":
        from importlib.metadata import version

        value = version(__name__)
    elif name in __all__:
        value = getattr(importlib.import_module(f"{__name__}.{_MODULES.get(name, 'api')}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
