"""For tests of devices: an agent's life, as far as they are concerned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bpfproxy.config import Settings
from bpfproxy.datapath import device, libbpf, loader
from bpfproxy.datapath.device import Hook
from bpfproxy.datapath.hooks import DeviceHooks
from bpfproxy.datapath.loader import Loaded
from bpfproxy.engine import Engine, SyncReport
from bpfproxy.model.device import NetworkState
from bpfproxy.model.event import Update
from bpfproxy.plan import node_config
from bpfproxy.proxiers.ebpf import lifecycle
from bpfproxy.proxiers.ebpf.devices import DeviceTable, take_programs
from bpfproxy.proxiers.ebpf.proxier import EbpfProxier
from bpfproxy.proxiers.ebpf.render import EbpfRenderer
from bpfproxy.sources.devices import network_state
from tests.lab.datapath import devices


class Run:
    """One life of an agent, as far as devices are concerned: loaded programs, their table, an engine over it."""

    def __init__(self, state: Path, compiled: Path, tcx: bool = True, *, held: bool = False, **settings: Any) -> None:
        top = state / "bpf"
        self.settings = Settings(state_dir=state, node_name="n1", **({"acceleration": "auto"} | settings))
        self.loaded = loader.load(devices.spec(compiled, top / "maps"), "prebuilt")
        self.programs = take_programs(self.loaded.programs)
        self.names = {int(libbpf.info(p.fd, "prog").id): name for name, p in self.programs.items()}
        self.hooks = DeviceHooks(top, tcx=tcx)
        self.table = DeviceTable(self.hooks, held=held)
        self.table.equip(self.programs)
        self.tables = _service_tables(state)
        self.proxier = EbpfProxier(
            self.tables.maps,
            EbpfRenderer(),
            grace_period=1.0,
            activate=lambda complete: self.table.release() if complete else None,
            destroy_sockets=lambda gone: None,
            close=self.table.close,
            devices=self.table,
        )
        self.engine = Engine({"ebpf": self.proxier}, "ebpf", self._config(NetworkState()))
        self.engine.start()

    def _config(self, network: NetworkState) -> Any:
        return node_config(self.settings, "n1", (), None, network)

    def sync(self, network: NetworkState | None = None, *, complete: bool = True) -> SyncReport:
        """Bring the devices to the plan for what is there now, or was."""
        self.engine.set_node(self._config(network or network_state()))
        self.engine.update(Update(complete=complete))
        return self.engine.sync()

    def attached(self) -> dict[str, dict[Hook, str]]:
        """device → hook → program, of this run alone; others are `?`."""
        found: dict[str, dict[Hook, str]] = {}
        for (hook, index), program_id in self.hooks.standing().items():
            found.setdefault(device.device_name(index), {})[hook] = self.names.get(program_id, "?")
        return found

    def close(self) -> None:
        """As an agent that ends: everything stays attached."""
        self.proxier.close()
        self.loaded.close()
        self.tables.close()

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _service_tables(state: Path) -> Loaded:
    small = Settings(max_frontends=4, max_sets=8, max_backends=4, max_slots=64)
    pins = state / "bpf" / "tables"
    pins.mkdir(exist_ok=True)
    spec = loader.LoadSpec(constants=lifecycle.constants(small), sizes=lifecycle.sizes(small), pin_dir=pins)
    loaded = loader.load(spec, "prebuilt")
    loaded.close_programs()
    return loaded
