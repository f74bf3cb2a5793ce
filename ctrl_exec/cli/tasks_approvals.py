"""`ctrl-exec execution approve|reject`: what a workflow waits for, decided at the prompt.

Owns no rule: who may, and what follows, is `tasks.approvals`'.
"""

from __future__ import annotations

from ctrl_exec.cli import errors

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from ctrl_exec.cli.arguments import Arguments
    from ctrl_exec.cli.tasks_context import TaskContext
    from ctrl_exec.tasks.models import Execution

_MOST_STEPS = 200


def approve(tasks: TaskContext, execution_id: str, arguments: Arguments) -> int:
    """Let a workflow go on."""
    from ctrl_exec.tasks.workflow.approvals import APPROVED

    return _decide(tasks, execution_id, arguments, APPROVED)


def reject(tasks: TaskContext, execution_id: str, arguments: Arguments) -> int:
    """Have the step of a workflow that waits count as failed."""
    from ctrl_exec.tasks.workflow.approvals import REJECTED

    return _decide(tasks, execution_id, arguments, REJECTED)


def _decide(tasks: TaskContext, execution_id: str, arguments: Arguments, verdict: str) -> int:
    from ctrl_exec.tasks.execution.execution_requests import encode_execution
    from ctrl_exec.tasks.project_secrets import load_secrets
    from ctrl_exec.tasks.sealing import Sealer
    from ctrl_exec.tasks.workflow.approvals import decide

    def secrets(execution: Execution) -> Iterable[str]:
        sealer = Sealer(tasks.context.config.secrets_key_path)
        return load_secrets(tasks.store, sealer, execution.project_id).values()

    document: dict[str, Any] = {
        "comment": arguments.text("comment"),
        "step": arguments.integer("step", 1, _MOST_STEPS),
    }
    execution = decide(tasks.store, tasks.identity, execution_id, document, verdict, secrets)
    most = tasks.context.config.tasks_max_running
    shown = {"ok": True, **encode_execution(tasks.store, execution, max_running=most)}
    tasks.output.answer(shown, lambda: tasks.output.line(f"{execution_id}: {verdict.lower()}"))
    return errors.OK
