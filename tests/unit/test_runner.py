"""When to sync next."""

from __future__ import annotations

import pytest

from bpfproxy.runner import Backoff, Runner


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class TestRunner:
    @pytest.fixture
    def clock(self) -> Clock:
        return Clock()

    @pytest.fixture
    def runner(self, clock: Clock) -> Runner:
        return Runner(minimum=2.0, maximum=30.0, backoff=Backoff(4.0, 10.0), clock=clock)

    def test_idle_until_a_full_run_is_due(self, runner: Runner, clock: Clock) -> None:
        assert runner.delay() == 30.0
        clock.now += 30.0
        assert runner.delay() == 0.0
        assert runner.begin() is True
        runner.end(ok=True)
        assert runner.delay() == 30.0

    def test_a_request_is_due_at_once_but_not_too_soon_after_a_run(self, runner: Runner, clock: Clock) -> None:
        runner.request()
        assert runner.delay() == 0.0
        assert runner.begin() is False
        runner.end(ok=True)
        runner.request()
        assert runner.delay() == 2.0
        clock.now += 1.5
        assert runner.delay() == 0.5

    def test_a_request_during_a_run_is_another_run(self, runner: Runner, clock: Clock) -> None:
        runner.request()
        runner.begin()
        clock.now += 5.0
        runner.request()
        runner.end(ok=True)
        assert runner.delay() == 0.0

    def test_failures_are_tried_again_later_and_later(self, clock: Clock) -> None:
        runner = Runner(minimum=2.0, maximum=300.0, backoff=Backoff(4.0, 10.0), clock=clock)
        pauses = []
        runner.request()
        for _ in range(4):
            runner.begin()
            runner.end(ok=False)
            pauses.append(runner.delay())
            clock.now += runner.delay()
        assert pauses == [4.0, 8.0, 10.0, 10.0]
        assert runner.failures == 4
        runner.begin()
        runner.end(ok=True)
        assert runner.failures == 0
        assert runner.delay() > 0.0

    def test_a_change_does_not_wait_for_the_next_try(self, runner: Runner, clock: Clock) -> None:
        runner.begin()
        runner.end(ok=False)
        clock.now += 2.0
        runner.request()
        assert runner.delay() == 0.0
