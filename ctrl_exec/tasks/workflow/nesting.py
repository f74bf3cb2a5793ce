"""Workflows within workflows: none executes itself, none is nested or multiplied without bound.

Owns these bounds. A task comes from whoever asks; nothing is said of it but that it breaks one.
"""

from __future__ import annotations

from ctrl_exec.tasks.models import Workflow

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ctrl_exec.tasks.models import Task

MOST_DEPTH = 10
"""So many workflows may be within one another."""
MOST_EXECUTIONS = 10_000
"""So many executions may come of one start."""
ITSELF = "the workflow would execute itself"
TOO_DEEP = f"workflows are nested more than {MOST_DEPTH} deep"
TOO_MANY = f"more than {MOST_EXECUTIONS} executions would come of it"


def nesting_faults(task: Task, load: Callable[[str], Task | None]) -> Iterator[tuple[int, str]]:
    """(place, fault) of each step that leads too far; `load` gives any task, whoever may see it."""
    if not isinstance(task.kind, Workflow):
        return
    measure = _Measure(load)
    total = 1
    for place, step in enumerate(task.kind.steps):
        try:
            total += measure.count(step.task_id, (task.task_id,)) if step.task_id else 0
            if total > MOST_EXECUTIONS:
                raise _TooFarError(TOO_MANY)
        except _TooFarError as fault:
            yield place, str(fault)
            return  # the others may lead there too: one is enough to refuse it


class _TooFarError(Exception):
    """A bound is broken; its text says which."""


class _Measure:
    """Depth and size of what steps lead to, each task measured once."""

    def __init__(self, load: Callable[[str], Task | None]) -> None:
        self._load = load
        self._known: dict[str, tuple[int, int]] = {}

    def count(self, task_id: str, path: tuple[str, ...]) -> int:
        """How many executions one of that task makes. Raises: _TooFarError."""
        return self._measured(task_id, path)[1]

    def _measured(self, task_id: str, path: tuple[str, ...]) -> tuple[int, int]:
        if task_id in path:
            raise _TooFarError(ITSELF)
        if task_id not in self._known:
            task = self._load(task_id)
            steps = task.kind.steps if task is not None and isinstance(task.kind, Workflow) else ()
            if steps and len(path) >= MOST_DEPTH:
                raise _TooFarError(TOO_DEEP)
            depth, count = int(bool(steps)), 1
            for step in steps:
                below, made = self._measured(step.task_id, (*path, task_id)) if step.task_id else (0, 0)
                depth, count = max(depth, below + 1), count + made
                if count > MOST_EXECUTIONS:
                    raise _TooFarError(TOO_MANY)
            self._known[task_id] = (depth, count)
        if len(path) + self._known[task_id][0] > MOST_DEPTH:
            raise _TooFarError(TOO_DEEP)
        return self._known[task_id]
