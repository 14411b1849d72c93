"""The run fails if a test is skipped that nobody allowed."""

from __future__ import annotations

from pathlib import Path

import pytest

CONFTEST = Path(__file__).parents[1] / "conftest.py"

SKIPPING = """
import pytest

def test_runs():
    pass

@pytest.mark.skip(reason="no such kernel: 4.4")
def test_skipped():
    pass
"""


@pytest.fixture
def project(pytester: pytest.Pytester) -> pytest.Pytester:
    # pytest_plugins is for a root conftest only, and needed by this file alone.
    pytester.makeconftest(CONFTEST.read_text().replace('pytest_plugins = ["pytester"]', ""))
    return pytester


def test_a_run_without_skips_passes(project: pytest.Pytester) -> None:
    project.makepyfile("def test_runs(): pass")
    assert project.runpytest_subprocess().ret == pytest.ExitCode.OK


def test_a_skip_that_is_not_listed_fails_the_run(project: pytest.Pytester) -> None:
    project.makepyfile(test_it=SKIPPING)
    result = project.runpytest_subprocess()
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(
        ["*skips: 1, not allowed: 1*", "NOT ALLOWED: test_it.py::test_skipped: no such kernel*"]
    )


def test_a_module_skipped_at_import_counts(project: pytest.Pytester) -> None:
    project.makepyfile("import pytest; pytest.importorskip('no_such_module')")
    assert project.runpytest_subprocess().ret == pytest.ExitCode.TESTS_FAILED


def test_a_listed_skip_passes_and_is_counted(project: pytest.Pytester) -> None:
    project.makepyfile(test_it=SKIPPING)
    project.path.joinpath("allowed_skips.txt").write_text("# why\ntest_it.py::test_sk*: no such kernel\n")
    result = project.runpytest_subprocess()
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(["*skips: 1, not allowed: 0*", "allowed: test_it.py::test_skipped: *"])


def test_a_listed_test_with_another_reason_fails(project: pytest.Pytester) -> None:
    project.makepyfile(test_it=SKIPPING)
    project.path.joinpath("allowed_skips.txt").write_text("test_it.py::*: needs another machine\n")
    assert project.runpytest_subprocess().ret == pytest.ExitCode.TESTS_FAILED
