"""Which manifest files have changed: inotify on what a path leads through, symbolic links included.

Only names that inotify reports are looked at again. A directory whose entries matter (a manifest directory, or one with
a symbolic link or a missing name on the way to one) is watched for them, every other directory on the way for its own
disappearance alone.
"""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple

from asyncinotify import Event, Inotify, Mask, Watch

from bpfproxy.errors import UnsupportedError

SUFFIXES: Final = (".yaml", ".yml", ".json")
SETTLE: Final = 0.05
"""Seconds that a name which went away has to come back: some editors move a file aside before they write it anew."""

_APPEARED: Final = Mask.CREATE | Mask.MOVED_TO
_VANISHED: Final = Mask.DELETE | Mask.MOVED_FROM
_SELF_GONE: Final = Mask.DELETE_SELF | Mask.MOVE_SELF
_PASSAGE: Final = _SELF_GONE | Mask.ONLYDIR | Mask.MASK_ADD
_ENTRIES: Final = _PASSAGE | _APPEARED | _VANISHED | Mask.CLOSE_WRITE | Mask.ATTRIB
_MAX_LINKS: Final = 40
