"""What would be done on each device, by which means, and who is there already: a part of `bpfproxy check`."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Final, Literal

from bpfproxy.datapath import bpffs, device, features, libbpf
from bpfproxy.datapath.device import Hook
from bpfproxy.datapath.hooks import DeviceHooks
from bpfproxy.errors import BpfproxyError
from bpfproxy.model.device import DevicePlan, DeviceRole, Xdp
from bpfproxy.model.finding import Finding

_DIRECTIONS: Final[dict[Hook, Literal["ingress", "egress"]]] = {Hook.TC_IN: "ingress", Hook.TC_OUT: "egress"}


def probe_devices(
    state_dir: Path, plans: Sequence[DevicePlan], uplinks: Sequence[str], *, host_routing: bool
) -> Iterator[Finding]:
    """Findings about the devices of this network namespace. `uplinks` are the names and patterns that were asked for.
    Changes nothing."""
    found = [plan.name for plan in plans if plan.role is DeviceRole.UPLINK]
    if found:
        detail = ", ".join(found)
    else:
        detail = f"no device fits {', '.join(uplinks)}" if uplinks else "no device has a default route"
    yield Finding("uplinks", bool(found), detail, "clients outside the node are not served until there is one")
    if host_routing:
        yield Finding("host routing", True, _BYPASSED, "")
    ours = _ours(state_dir)
    for plan in plans:
        yield _device(plan, ours)


_BYPASSED: Final = (
    "asked for: packets to pods of this node bypass FORWARD rules (NetworkPolicy), the drop of INVALID packets and the"
    " network plugin's MASQUERADE"
)


def _ours(state_dir: Path) -> frozenset[int]:
    """The ids of the programs that the datapath of this state directory has attached."""
    try:
        top = bpffs.locate(state_dir)
        return frozenset(DeviceHooks(top, tcx=True).standing().values()) if top else frozenset()
    except (BpfproxyError, OSError):
        return frozenset()


def _device(plan: DevicePlan, ours: Collection[int]) -> Finding:
    means, reason = _means(plan, ours)
    places = "+".join(["in"] * plan.ingress + ["out"] * plan.egress)
    detail = f"{plan.role.name.lower()}, {means} ({places})"
    if reason:
        detail += f": {reason}"
    if others := list(_others(plan.index, ours)):
        detail += f"; also there, and before us: {', '.join(others)}"
    demanded = plan.xdp is not Xdp.NEVER
    return Finding(f"device {plan.name}", not demanded or means == "XDP", detail, "tc in place of XDP")


def _means(plan: DevicePlan, ours: Collection[int]) -> tuple[str, str]:
    """(what is used, why not XDP)."""
    if plan.xdp is Xdp.NEVER:
        return "tc", ""
    try:
        if (there := device.xdp_program(plan.index)) and there not in ours:
            return "tc", f"another XDP program is on it ({libbpf.describe_program(there)})"
    except OSError as error:
        return "tc", error.strerror or str(error)
    match _native(plan.index):
        case True:
            return "XDP", ""
        case None:
            return "XDP", "if its driver has it: this kernel does not tell"
    return "tc", "its driver has no native XDP"


def _native(ifindex: int) -> bool | None:
    from bpfproxy.datapath import xdp_features

    return xdp_features.has_native_xdp(ifindex)


def _others(ifindex: int, ours: Collection[int]) -> Iterator[str]:
    """Programs and filters of others in tc."""
    from bpfproxy.datapath import clsact

    for hook, direction in _DIRECTIONS.items():
        try:
            if features.has_tcx():
                for number in device.tcx_programs(ifindex, direction):
                    if number not in ours:
                        yield f"tcx {direction} {libbpf.describe_program(number)}"
            for name in clsact.others(hook, ifindex):
                yield f"tc {direction} filter {name}"
        except (BpfproxyError, OSError) as error:
            yield f"tc {direction}: {error}"
