"""Exit statuses: one line on standard error for what went wrong, and a number that says what kind it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import click

from bpfproxy.errors import BpfproxyError

USAGE: Final = 2
INTERRUPTED: Final = 130
"""128 + SIGINT, as a shell says it."""
BROKEN_PIPE: Final = 141
"""128 + SIGPIPE."""


def documented() -> list[tuple[int, str]]:
    """All statuses and their meaning, sorted; those of errors are read from the error classes."""
    texts = {
        0: "Success.",
        USAGE: "The command line itself is wrong.",
        INTERRUPTED: "Interrupted.",
        BROKEN_PIPE: "Whoever read the output went away.",
    }
    pending = [BpfproxyError]
    while pending:
        error = pending.pop()
        pending += error.__subclasses__()
        texts.setdefault(error.exit_code, "Any other error." if error is BpfproxyError else (error.__doc__ or ""))
    return sorted(texts.items())


@contextmanager
def reported() -> Iterator[None]:
    """Turns errors into one line and SystemExit."""
    try:
        yield
    except BpfproxyError as error:
        _end(error.exit_code, str(error))
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        raise SystemExit(USAGE) from None
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        where = f"{context.command_path}: " if context else ""
        hint = f" (see `{context.command_path} --help`)" if context else ""
        _end(error.exit_code, f"{where}{error.format_message()}{hint}", prefix="" if where else "bpfproxy: ")
    except (KeyboardInterrupt, click.Abort):
        raise SystemExit(INTERRUPTED) from None


def _end(status: int, message: str, prefix: str = "bpfproxy: ") -> None:
    for line in message.splitlines():
        click.echo(f"{prefix}{line}", err=True)
    raise SystemExit(status)
