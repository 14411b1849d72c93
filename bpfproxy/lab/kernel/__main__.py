"""`./dev kernel-test [VERSION] [-- ARGUMENTS]`: tests on a kernel of Debian's."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from bpfproxy.errors import BpfproxyError
from bpfproxy.lab.kernel import debian, matrix, tests
from bpfproxy.lab.place import PROJECT

DEFAULT = "6.1"
RESULTS = PROJECT / "build" / "kernels"


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("version", required=False, type=click.Choice(list(debian.SUITES)), default=DEFAULT)
@click.argument("arguments", nargs=-1)
@click.option("--results", type=click.Path(path_type=Path), help="Directory for what comes out.")
@click.option("--timeout", type=float, default=10800.0, show_default=True, help="Seconds for all.")
@click.option("--refresh", is_flag=True, help="Fetch the newest kernel of the series, whatever the cache has.")
@click.option("--parity", is_flag=True, help="In place of tests: ipvs's column of `bpfproxy parity`, as parity.json.")
@click.option("--update-docs", is_flag=True, help="Run the matrix on all kernels, and write docs/kernels.md.")
def main(
    version: str,
    arguments: tuple[str, ...],
    results: Path | None,
    timeout: float,
    refresh: bool,
    parity: bool,
    update_docs: bool,
) -> None:
    """Boot Debian's kernel VERSION (default: 6.1) over this machine's files and run tests inside: by default those
    that need it, tests/kernels. What follows -- goes to pytest; the exit status is pytest's."""
    results = results or RESULTS
    try:
        if update_docs:
            versions = (*debian.SUITES, matrix.RUNNING)
            matrix.write([matrix.run(one, results / "matrix" / one) for one in versions])
            return
        kernel = debian.fetch(version, refresh=refresh)
        if parity:
            status = tests.parity(kernel, arguments, results / version, timeout)
            click.echo(f"kernel-test: to join it: ./dev parity --join {results / version / tests.PARITY}", err=True)
            sys.exit(status)
        sys.exit(tests.run(kernel, arguments or tests.DEFAULT, results / version, timeout))
    except BpfproxyError as error:
        click.echo(f"kernel-test: {error}", err=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
