"""The programs of the packet level at the node's devices, kept as rows: what is attached where.

A device's `DevicePlan` is its row. XDP that was preferred and cannot be had is made up for by tc, and said; it is
tried again when the device's row changes, and when the agent starts.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from bpfproxy.datapath import libbpf
from bpfproxy.datapath.attach import AttachError, Outcome
from bpfproxy.datapath.device import Hook, exists
from bpfproxy.datapath.hooks import DeviceHooks
from bpfproxy.datapath.loader import Program
from bpfproxy.errors import BpfproxyError, DatapathError
from bpfproxy.events import emit
from bpfproxy.model.device import DevicePlan, DeviceRole, Xdp
from bpfproxy.proxiers.base import Failure, Op
from bpfproxy.proxiers.ebpf.rows import DeviceKey

log = logging.getLogger(__name__)

PROGRAMS: Final = ("bp_xdp", "bp_tc_in", "bp_tc_in_l3", "bp_tc_in_left", "bp_tc_out", "bp_tc_out_l3")
"""All that is attached to devices, by its name in the C tree: `_left` takes what XDP on the same device leaves, `_l3`
is for devices whose packets begin with the IP header."""


def programs(plan: DevicePlan, *, xdp: bool) -> dict[Hook, str]:
    """The programs that carry out a plan, with XDP or by tc alone. What translates back comes first."""
    layer = "" if plan.ethernet else "_l3"
    wanted: dict[Hook, str] = {}
    if plan.egress:
        wanted[Hook.TC_OUT] = f"bp_tc_out{layer}"
    if xdp:
        wanted[Hook.XDP] = "bp_xdp"
    if plan.ingress:
        wanted[Hook.TC_IN] = "bp_tc_in_left" if xdp else f"bp_tc_in{layer}"
    return wanted


class DeviceTable:
    """Attaches programs to devices, and owns their descriptors. Before the first `write` it has to be equipped.

    Until `release`, ops are kept: the programs of an earlier version with fuller maps go on working. `attached_xdp` is
    called with each device that has got XDP.
    """

    def __init__(
        self,
        hooks: DeviceHooks,
        *,
        held: bool = False,
        attached_xdp: Callable[[DevicePlan], None] = lambda _: None,
    ) -> None:
        self._hooks = hooks
        self._attached_xdp = attached_xdp
        self._programs: dict[str, Program] = {}
        self._ids: dict[str, int] = {}
        self._applied: dict[int, DevicePlan] = {}
        self._by_tc: dict[int, str] = {}
        """Devices where tc does what XDP was asked for, and why."""
        self._held: dict[DeviceKey, Op] | None = {} if held else None

    @property
    def equipped(self) -> bool:
        """Whether it has programs."""
        return bool(self._ids)

    def equip(self, loaded: Mapping[str, Program]) -> None:
        """Give it programs: all of PROGRAMS, by name."""
        self._programs = {name: loaded[name] for name in PROGRAMS}
        self._ids = {name: int(libbpf.info(p.fd, "prog").id) for name, p in self._programs.items()}

    def in_force(self) -> bool:
        """Whether no other programs than these stand at the devices."""
        return {*self._hooks.standing().values()} <= {*self._ids.values()}

    def read(self) -> dict[DeviceKey, DevicePlan]:
        """What is attached. Where it is not what was applied last, or was attached by an earlier run, the row is one
        that no plan asks for."""
        running: dict[int, dict[Hook, int]] = {}
        for (hook, index), program_id in self._hooks.standing().items():
            running.setdefault(index, {})[hook] = program_id
        rows = {DeviceKey(index): _something_else(index) for _, index in self._hooks.pinned()}
        for index, plan in self._applied.items():
            if plan.xdp is Xdp.REQUIRED and index in self._by_tc:
                continue
            if running.get(index) == {hook: self._ids[name] for hook, name in self._wanted(plan).items()}:
                rows[DeviceKey(index)] = plan
        return rows

    def write(self, ops: Sequence[Op]) -> list[Failure]:
        """Attach, switch and detach as the rows say. Programs that translate replies back are in place on all of
        `ops`' devices before any that translates forward."""
        if self._held is not None:
            self._held.update({op.key: op for op in ops})
            return []
        failures: dict[int, Failure] = {}
        changed: set[int] = set()
        for hooks in ((Hook.TC_OUT,), (Hook.XDP, Hook.TC_IN)):
            for op in ops:
                if op.row.index not in failures:
                    self._write(op, hooks, failures, changed)
        for op in ops:
            if op.row.index in changed:
                names = ",".join(self._wanted(op.row).values())
                role = op.row.role.name.lower()
                emit(log, logging.INFO, "device_attached", device=op.row.name, role=role, programs=names)
        return list(failures.values())

    def delete(self, ops: Sequence[Op]) -> list[Failure]:
        """Detach everything; the devices may be gone."""
        if self._held is not None:
            self._held.update({op.key: op for op in ops})
            return []
        failures: dict[int, Failure] = {}
        for hook in (Hook.TC_IN, Hook.XDP, Hook.TC_OUT):
            for op in ops:
                index = op.key.index
                try:
                    self._hooks.detach(hook, index)
                except DatapathError as error:
                    failures[index] = Failure(op, str(error))
                self._forget(index)
        for op in ops:
            if op.key.index not in failures:
                emit(log, logging.INFO, "device_detached", device=op.key.index)
        return list(failures.values())

    def release(self) -> None:
        """Carry out what was kept. What fails is logged, and shows at the next `read`."""
        if self._held is None:
            return
        ops, self._held = list(self._held.values()), None
        failures = self.write([op for op in ops if op.row is not None])
        for failure in failures + self.delete([op for op in ops if op.row is None]):
            emit(log, logging.ERROR, "refused", reason=failure.reason, rows=1, first=failure.op.key)

    def close(self) -> None:
        """Close the programs' descriptors; what is attached stays."""
        for program in self._programs.values():
            os.close(program.fd)
        self._programs = {}

    def _wanted(self, plan: DevicePlan) -> dict[Hook, str]:
        """The programs for a plan, now that it is known where XDP cannot be had."""
        return programs(plan, xdp=bool(plan.xdp) and plan.index not in self._by_tc)

    def _write(self, op: Op, hooks: tuple[Hook, ...], failures: dict[int, Failure], changed: set[int]) -> None:
        """Bring some hooks of a device to its row; the last ones settle it."""
        plan: DevicePlan = op.row
        self._by_tc.pop(plan.index, None)
        try:
            refused = self._put(plan, hooks, changed)
        except BpfproxyError as error:
            if exists(plan.index):
                failures[plan.index] = Failure(op, str(error))
                self._forget(plan.index)
                return
            refused = None  # the source is about to say so
        if Hook.TC_IN not in hooks:
            return
        self._applied[plan.index] = plan
        if plan.xdp and not refused and exists(plan.index):
            self._attached_xdp(plan)
        if refused:
            self._by_tc[plan.index] = refused
            if plan.xdp is Xdp.REQUIRED:
                failures[plan.index] = Failure(op, f"{refused}; tc does it meanwhile")
            else:
                emit(log, logging.WARNING, "xdp_refused", device=plan.name, reason=refused, instead="tc")

    def _put(self, plan: DevicePlan, hooks: tuple[Hook, ...], changed: set[int]) -> str | None:
        """Returns why XDP was refused."""
        refused: str | None = None
        wanted = programs(plan, xdp=bool(plan.xdp))
        for hook in hooks:
            if hook in wanted:
                try:
                    outcome = self._hooks.attach(hook, plan.index, self._programs[wanted[hook]])
                except AttachError as error:
                    if hook is not Hook.XDP:
                        raise
                    refused = str(error)
                    wanted = programs(plan, xdp=False)
                    continue
                if outcome is not Outcome.UNCHANGED:
                    changed.add(plan.index)
        # Last: a packet may be looked at twice for a moment, but none is overlooked.
        for hook in hooks:
            if hook not in wanted and self._hooks.detach(hook, plan.index):
                changed.add(plan.index)
        return refused

    def _forget(self, index: int) -> None:
        self._applied.pop(index, None)
        self._by_tc.pop(index, None)


def take_programs(loaded: dict[str, Program]) -> dict[str, Program]:
    """Take those of PROGRAMS out of a loader's programs; empty unless all are there."""
    if not all(name in loaded for name in PROGRAMS):
        return {}
    return {name: loaded.pop(name) for name in PROGRAMS}


def _something_else(index: int) -> DevicePlan:
    return DevicePlan(index, "", DeviceRole.PASSAGE, ingress=False, egress=False)
