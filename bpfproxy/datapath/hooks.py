"""What a datapath has attached to devices, by whichever means: pinned links, or filters of clsact where the kernel has
no tcx. STATE/bpf/links holds `HOOK-IFINDEX`, STATE/bpf/clsact its counterpart."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from bpfproxy.datapath import attach, features
from bpfproxy.datapath.attach import Attachable, Link, Outcome, Target
from bpfproxy.datapath.device import Hook, TcxTarget, XdpTarget


class DeviceHooks:
    """The devices' hooks of the datapath under the bpffs `top`. `tcx` chooses the means for tc: None is what the
    kernel offers. Devices are those of the calling thread's network namespace."""

    def __init__(self, top: Path, *, tcx: bool | None = None) -> None:
        self._links = top / "links"
        self._clsact = top / "clsact"
        self._tcx = features.has_tcx() if tcx is None else tcx

    def attach(self, hook: Hook, ifindex: int, program: Attachable) -> Outcome:
        """See to it that `program` runs at a hook, in the place of our former one. Raises AttachError,
        PermissionsError."""
        if hook is not Hook.XDP and not self._tcx:
            from bpfproxy.datapath import clsact

            return clsact.attach(self._clsact, hook, ifindex, program)
        outcome = attach.attach(self._links, _pin(hook, ifindex), program, _target(hook, ifindex))
        if hook is not Hook.XDP:
            self._detach_clsact(hook, ifindex)  # an older kernel's, or a test's
        return outcome

    def detach(self, hook: Hook, ifindex: int) -> bool:
        """Take away our program, if there is one; the device may be gone. Returns whether there was one. Raises
        DatapathError."""
        detached = attach.detach(self._links, _pin(hook, ifindex))
        return self._detach_clsact(hook, ifindex) or detached

    def _detach_clsact(self, hook: Hook, ifindex: int) -> bool:
        if not (self._clsact / _pin(hook, ifindex)).exists():
            return False
        from bpfproxy.datapath import clsact

        return clsact.detach(self._clsact, hook, ifindex)

    def standing(self) -> dict[tuple[Hook, int], int]:
        """The ids of the programs that run, by hook and device."""
        found = {place: link.program_id for place, link in self._device_links() if link.ifindex == place[1]}
        if self._clsact.is_dir():
            from bpfproxy.datapath import clsact

            found |= clsact.standing(self._clsact)
        return found

    def pinned(self) -> list[tuple[Hook, int]]:
        """All that was attached and not detached: also what is dead since its device is gone."""
        found = [place for place, _ in self._device_links()]
        if self._clsact.is_dir():
            from bpfproxy.datapath import clsact

            found += clsact.pinned(self._clsact)
        return found

    def detach_all(self) -> list[str]:
        """Take away everything from all devices, what translates first; returns the names of what was there."""
        order = (Hook.TC_IN, Hook.XDP, Hook.TC_OUT)
        places = sorted(self.pinned(), key=lambda place: (order.index(place[0]), place[1]))
        removed = [_pin(*place) for place in places if self.detach(*place)]
        if self._clsact.is_dir():
            from bpfproxy.datapath.bpffs import remove_tree

            remove_tree(self._clsact)
        return removed

    def _device_links(self) -> Iterator[tuple[tuple[Hook, int], Link]]:
        hooks = {hook.value: hook for hook in Hook}
        for link in attach.links(self._links):
            name, _, ifindex = link.name.partition("-")
            if name in hooks and ifindex.isdecimal():
                yield (hooks[name], int(ifindex)), link


def _pin(hook: Hook, ifindex: int) -> str:
    return f"{hook}-{ifindex}"


def _target(hook: Hook, ifindex: int) -> Target:
    match hook:
        case Hook.XDP:
            return XdpTarget(ifindex)
        case Hook.TC_IN:
            return TcxTarget(ifindex, "ingress")
    return TcxTarget(ifindex, "egress")
