"""The errors that bpfproxy raises on purpose, each with the exit code that the command line gives it.

Every message is one line that names the object at fault and what was expected; causes are chained.
"""

from __future__ import annotations

from typing import ClassVar


class BpfproxyError(Exception):
    """Base of all errors that a user can meet. `exit_code` is documented in `bpfproxy --help`."""

    exit_code: ClassVar[int] = 1


class InputError(BpfproxyError):
    """A manifest or setting that cannot be accepted."""

    exit_code = 3


class PermissionsError(BpfproxyError):
    """Missing capabilities; the message names them."""

    exit_code = 4


class AlreadyRunningError(BpfproxyError):
    """Another agent holds the state directory."""

    exit_code = 5


class UnsupportedError(BpfproxyError):
    """This kernel or machine lacks something that the request needs; the message names it."""

    exit_code = 6


class NotRunningError(BpfproxyError):
    """There is no datapath under the state directory."""

    exit_code = 7


class DatapathError(BpfproxyError):
    """The kernel refused a program, a map or an attachment."""

    exit_code = 8


def describe(error: BaseException | None) -> str:
    """One line for a log: errors of our own say all themselves."""
    if error is None:
        return "it ended"
    return str(error) if isinstance(error, BpfproxyError) else f"{type(error).__name__}: {error}"
