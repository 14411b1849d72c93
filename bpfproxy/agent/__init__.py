"""The node agent: sources → engine → proxiers, until it is told to stop."""

from __future__ import annotations

from bpfproxy.agent.agent import Agent

__all__ = ["Agent"]
