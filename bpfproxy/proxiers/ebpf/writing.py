"""Rows in batches, and what becomes of those that the kernel refuses."""

from __future__ import annotations

import errno
from collections.abc import Sequence

from bpfproxy.datapath.maps import Map


def write_rows(map_: Map, keys: Sequence[bytes], values: Sequence[bytes]) -> dict[int, str]:
    """Write rows in batches. Returns {index: reason} of those that the kernel refused; the others are written."""
    refused: dict[int, str] = {}
    start = 0
    while start < len(keys):
        done, error = map_.update_batch(b"".join(keys[start:]), b"".join(values[start:]), len(keys) - start)
        start += done
        if error is not None:
            full = error.errno in (errno.E2BIG, errno.ENOMEM)
            refused[start] = f"map {map_.name} is full: {map_.max_entries} rows" if full else str(error.strerror)
            start += 1
    return refused


def delete_rows(map_: Map, keys: Sequence[bytes]) -> None:
    """Delete rows in batches; a row that is not there is no error."""
    if keys:
        map_.delete_batch(b"".join(keys), len(keys))
