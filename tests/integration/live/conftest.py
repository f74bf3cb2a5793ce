"""The same agents and dispatchers as for plain runs."""

from __future__ import annotations

from tests.integration.runs.conftest import agents, bench

__all__ = ["agents", "bench"]
