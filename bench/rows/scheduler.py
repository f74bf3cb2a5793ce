"""The scheduler with ten thousand tasks. The task layer is to come; until then these rows say so."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec
from typing import TYPE_CHECKING

from bench.row import Group, Row, absent
from bench.series import at_most

if TYPE_CHECKING:
    from bench.session import Session


def measure(_session: Session) -> Iterable[Row]:
    """Nothing yet."""
    has_tasks = find_spec("ctrl_exec.tasks") is not None
    why = "the task layer is there, its measurement is not" if has_tasks else "the task layer is to come"
    yield absent("scheduler-rest", "10,000 tasks at rest: share of a core", at_most(0.01), why)
    yield absent("scheduler-late", "10,000 tasks: seconds from due to started", at_most(1), why)


GROUP = Group("scheduler", "10,000 tasks at rest and due", measure)
