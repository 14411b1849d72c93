"""Events: one line each on standard error, `level=info event=sync ops=12 seconds=0.003`, over Python's logging.

Any module may log a message that begins with `event=`; `emit` quotes values where that is needed.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import time
import traceback
from types import TracebackType
from typing import Final, TextIO

_BARE: Final = re.compile(r"[^\s\"=\\]+")


def emit(log: logging.Logger, level: int, event: str, **fields: object) -> None:
    """Log `event` with its fields in their order; those that are None are left out."""
    if log.isEnabledFor(level):
        words = [f"{name}={quote(value)}" for name, value in fields.items() if value is not None]
        log.log(level, "%s", " ".join([f"event={event}", *words]))


def quote(value: object) -> str:
    """`value` as one word: numbers short, text in double quotes unless it is plain."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.6g}"
    text = str(value)
    return text if _BARE.fullmatch(text) else json.dumps(text, ensure_ascii=False)


class EventFormatter(logging.Formatter):
    """`time=… level=… event=…`, always one line. Other libraries' messages become `event=log`."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter.format`."""
        message = record.getMessage()
        if not message.startswith("event="):
            message = f"event=log logger={quote(record.name)} message={quote(message)}"
        if record.exc_info and record.exc_info[1]:
            message += f" trace={quote(_trace(record.exc_info[2]))}"
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = f"time={moment}.{int(record.msecs):03}Z level={record.levelname.lower()} {message}"
        return line.replace("\n", "\\n")


def _trace(frames: TracebackType | None) -> str:
    """`file:line function` of each frame, innermost last."""
    return " > ".join(f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(frames))


def configure(level: str, stream: TextIO | None = None) -> None:
    """Send all logging of this process, from severity `level` on, to `stream` (standard error)."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(EventFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.raiseExceptions = False  # a reader that went away is no reason to write elsewhere
