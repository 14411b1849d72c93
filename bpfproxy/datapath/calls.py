"""The packet level's tail calls: which program is in which slot is in the names of both (enum call in abi.h)."""

from __future__ import annotations

from typing import Final

from bpfproxy.datapath import abi
from bpfproxy.datapath.loader import Loaded

LAYERS: Final = ("xdp", "tc")


def fill(loaded: Loaded) -> None:
    """Put the programs of the packet level into xdp_calls and tc_calls. Raises OSError.

    A slot whose program was not loaded stays as it is; a program that calls it counts REASON_BROKEN.
    """
    for layer in LAYERS:
        if (slots := loaded.maps.get(f"{layer}_calls")) is None:
            continue
        for slot in abi.enum_of("call", "CALL_"):
            program = loaded.programs.get(f"bp_{layer}_{slot.name.lower()}")
            if program is not None:
                slots.update(slot.to_bytes(4, "little"), program.fd.to_bytes(4, "little"))
