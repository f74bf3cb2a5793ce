"""`ctrl-exec task run`, `ctrl-exec execution`: tasks started, watched and ended at the prompt.

Owns how the words of `-p` become values of a parameter's type, and what an execution's end is as an exit
code. What an execution may and does is `tasks.execution_requests`'.
"""

from __future__ import annotations

from ctrl_exec.cli import errors
from ctrl_exec.cli.command import CREDENTIAL_OPTIONS, Action, Command, Option, action_places
from ctrl_exec.cli.tasks_approvals import approve, reject
from ctrl_exec.cli.tasks_context import open_tasks
from ctrl_exec.common.errors import InvalidInputError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from ctrl_exec.cli.arguments import Arguments
    from ctrl_exec.cli.context import Context
    from ctrl_exec.cli.progress import Release
    from ctrl_exec.cli.tasks_context import TaskContext
    from ctrl_exec.tasks.models import Execution, Parameter, Task

ACTIONS = (
    Action("list", "", "the newest, those of --task or --status only"),
    Action("show", "EXECUTION", "one as the API gives it"),
    Action("log", "EXECUTION", "its log; with -f as it comes, to the end"),
    Action("abort", "EXECUTION", "have it end"),
    Action("retry", "EXECUTION", "once more with the parameters it had; prints the new id"),
    Action("approve", "EXECUTION", "let a workflow go on that waits for it"),
    Action("reject", "EXECUTION", "have the step of a workflow that waits count as failed"),
    Action("remove", "EXECUTION", "delete one that is over, with its log"),
)
FAREWELL = "ctrl-exec: leaving; the execution goes on"
_MOST = 500
_SHOWN = 50
_LOOK_EVERY_S = 0.2


def run_task(tasks: TaskContext, task: Task, arguments: Arguments) -> int:
    """Have a task executed; with `--follow` show its log to the end and give the end's exit code."""
    from ctrl_exec.tasks.execution.execution_requests import start

    overrides = read_parameters(tasks, task.parameters, arguments.many("parameter"))
    document = {"taskId": task.task_id, "parameterMap": overrides}
    execution = start(tasks.store, tasks.identity, document, lambda contents: _sealed(tasks, contents))
    return _tell_begun(tasks, execution, arguments)


def _tell_begun(tasks: TaskContext, execution: Execution, arguments: Arguments) -> int:
    if arguments.flag("follow"):
        tasks.output.message(f"execution {execution.execution_id}")
        return follow(tasks, execution.execution_id)
    document = {"ok": True, **encoded(tasks, execution)}
    tasks.output.answer(document, lambda: tasks.output.line(execution.execution_id))
    return errors.OK


def read_parameters(
    tasks: TaskContext, parameters: tuple[Parameter, ...], words: tuple[str, ...]
) -> dict[str, Any]:
    """The values that `NAME=VALUE` words mean, each of its parameter's type.

    Raises: UsageError for a word that is no assignment, or a SECRET that others could see in ps. What is
    no value of its parameter stays as it is, for the start to refuse it by name.
    """
    known = {each.name: each for each in parameters}
    found: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not name or not equals:
            raise UsageError(f"-p: expected NAME=VALUE, not {word!r}")
        if name in found:
            raise UsageError(f"-p: {name} is given twice")
        kind = known[name].type if name in known else ""
        found[name] = _secret(tasks, name, text) if kind == "SECRET" else typed(kind, text)
    return found


def typed(kind: str, text: str) -> Any:
    """A word as a value of a parameter's type: `true`, `5`, or the text itself."""
    if kind == "CHECKBOX" and text in ("true", "false"):
        return text == "true"
    if kind == "INTEGER" and text.isascii() and text.removeprefix("-").isdigit() and len(text) <= 17:
        return int(text)
    return text


def _secret(tasks: TaskContext, name: str, text: str) -> str:
    if text == "-" or (text.startswith("@") and len(text) > 1):
        return tasks.context.first_line(text.removeprefix("@"), f"-p {name}")
    raise UsageError(
        f"-p {name}: a SECRET is read from a file, {name}=@FILE, or from standard input, {name}=-"
    )


def _sealed(tasks: TaskContext, contents: dict[str, Any]) -> bytes:
    from ctrl_exec.tasks.sealing import Sealer, seal_parameters

    return seal_parameters(Sealer(tasks.context.config.secrets_key_path), contents)


def execute_execution(context: Context, arguments: Arguments) -> int:
    """List executions; show, follow, abort or repeat one."""
    action, words = arguments.words[0], arguments.words[1:]
    with open_tasks(context, arguments) as tasks:
        if action == "list":
            return list_executions(tasks, arguments)
        return _ACTS[action](tasks, execution_named(tasks, words[0]), arguments)


def execution_named(tasks: TaskContext, word: str) -> str:
    """The id that a word is, or that of the newest execution of the task of that name.

    Raises: NotFoundError for a task that was never started; ConflictError for a name in several projects.
    """
    from ctrl_exec.cli.tasks_context import only_one
    from ctrl_exec.common.errors import NotFoundError
    from ctrl_exec.tasks.definitions import find_named
    from ctrl_exec.tasks.execution.execution_requests import listed
    from ctrl_exec.tasks.execution.executions import ExecutionFilter
    from ctrl_exec.tasks.ulid import ULID

    found = find_named(tasks.store, tasks.identity, word)
    if not found:
        if not ULID.fullmatch(word.upper()):
            raise NotFoundError(f"no execution and no task {word!r}; `ctrl-exec execution list` shows them")
        return word.upper()
    task = only_one(found, "task", word)
    wanted = ExecutionFilter(task_id=task.task_id)
    newest = listed(tasks.store, tasks.identity, wanted, limit=1, before_id=None)
    if not newest:
        raise NotFoundError(f"no execution of {task.name!r} yet; `ctrl-exec task run` starts one")
    return newest[0].execution_id


def list_executions(tasks: TaskContext, arguments: Arguments) -> int:
    """Show executions, the newest first."""
    from ctrl_exec.tasks.execution import execution_requests
    from ctrl_exec.tasks.execution.executions import ExecutionFilter

    name = arguments.text("task")
    task_id = None
    if name is not None:
        from ctrl_exec.cli.tasks_definitions import task_named

        task_id = task_named(tasks, name, arguments.text("project")).task_id
    statuses = tuple(each.upper() for each in arguments.many("status"))
    for each in statuses:
        if not execution_requests.check_status(each):
            raise UsageError(
                f"--status: {each!r} is none; an execution is PENDING, RUNNING, SUCCESS, FAILED, …"
            )
    project = arguments.text("project")
    projects = None if project is None else (project,)
    wanted = ExecutionFilter(task_id=task_id, statuses=statuses, project_ids=projects)
    limit = arguments.integer("limit", 1, _MOST) or _SHOWN
    found = execution_requests.listed(tasks.store, tasks.identity, wanted, limit=limit, before_id=None)
    columns = ("ID", "TASK", "STATUS", "TRIGGER", "START", "END", "EXIT")
    rows = [
        (each.execution_id, _task_name(tasks, each.task_id), each.status, each.trigger,
         tasks.time_of(each.start_ns), tasks.time_of(each.end_ns), _or_dash(each.exit_code))
        for each in found
    ]  # fmt: skip
    document = {"ok": True, "executions": [encoded(tasks, each) for each in found]}
    tasks.output.answer(document, lambda: tasks.output.table(columns, rows))
    return errors.OK


def _task_name(tasks: TaskContext, task_id: str) -> str:
    row = tasks.store.row("SELECT name FROM tasks WHERE task_id = ?", (task_id,))
    return task_id if row is None else str(row["name"])


def _or_dash(content: object) -> str:
    return "-" if content is None else str(content)


def show(tasks: TaskContext, execution_id: str, _arguments: Arguments) -> int:
    """Show one execution as the document that the API gives."""
    import json

    from ctrl_exec.tasks.execution.execution_requests import find

    document = encoded(tasks, find(tasks.store, tasks.identity, execution_id))
    text = json.dumps(document, ensure_ascii=False, indent=2)
    tasks.output.answer({"ok": True, **document}, lambda: tasks.output.line(text))
    return errors.OK


def show_log(tasks: TaskContext, execution_id: str, arguments: Arguments) -> int:
    """Show the log of one execution, with `-f` as it comes and to its end."""
    from ctrl_exec.tasks.execution.execution_log import read_log
    from ctrl_exec.tasks.execution.execution_requests import find_for_log, is_final

    execution = find_for_log(tasks.store, tasks.identity, execution_id)
    if arguments.flag("follow"):
        return follow(tasks, execution_id)
    text = Decoded(tasks)
    if tasks.output.is_json:
        log = b"".join(piece for _, piece in read_log(_log_path(tasks, execution_id)))
        document = {"ok": True, **encoded(tasks, execution), "log": log.decode("utf-8", "replace")}
        tasks.output.document(document)
        return errors.OK
    for _, piece in read_log(_log_path(tasks, execution_id)):
        text.write(piece)
    text.write(b"", is_last=True)
    if not is_final(execution):
        tasks.output.message(f"execution {execution_id} is {execution.status}; -f shows what is to come")
    return errors.OK


class Decoded:
    """Writes pieces of a log to the answer: whole characters, harmless to a terminal."""

    def __init__(self, tasks: TaskContext) -> None:
        from codecs import getincrementaldecoder

        self._output = tasks.output
        self._decoder = getincrementaldecoder("utf-8")("replace")

    def write(self, piece: bytes, *, is_last: bool = False) -> None:
        """Write what is whole by now."""
        text = self._decoder.decode(piece, is_last)
        if text and self._output.stdout.isatty():
            from ctrl_exec.cli.results import harmless

            text = harmless(text)
        self._output.raw(text)
        if text:
            self._output.stdout.flush()


def follow(tasks: TaskContext, execution_id: str) -> int:
    """Show a log as it comes, those of further attempts too; give the exit code of the end.

    Ctrl-C ends the watching, not the execution.
    """
    from ctrl_exec.cli.progress import Release
    from ctrl_exec.tasks.execution.executions import find_execution

    with Release(errors.INTERRUPTED, FAREWELL) as release:
        following: str | None = execution_id
        while following is not None:
            execution_id = following
            text = Decoded(tasks)
            for piece in _pieces(tasks, execution_id, release):
                text.write(piece)
            text.write(b"", is_last=True)
            if release.is_pressed:
                return _let_go(tasks, execution_id)
            following = _next_attempt(tasks, execution_id)
            if following is not None:
                tasks.output.message(f"it failed and is tried again: execution {following}")
    execution = find_execution(tasks.store, execution_id)
    document = {"ok": execution.status == "SUCCESS", **encoded(tasks, execution)}
    tasks.output.answer(document, lambda: tasks.output.message(verdict(execution)))
    return exit_code(execution)


def _pieces(tasks: TaskContext, execution_id: str, release: Release) -> Iterator[bytes]:
    """What is in the log and what comes, until the execution is over or Ctrl-C is pressed."""
    from ctrl_exec.tasks.execution.execution_log import read_log
    from ctrl_exec.tasks.execution.execution_requests import is_final
    from ctrl_exec.tasks.execution.executions import find_execution

    path, at = _log_path(tasks, execution_id), 0
    while not release.is_pressed:
        # asked before the log is read: what was printed last is there then
        is_over = is_final(find_execution(tasks.store, execution_id))
        before = at
        for end, piece in read_log(path, at):
            at = end
            yield piece
        if at == before and (is_over or release.wait(_LOOK_EVERY_S)):
            return


def _next_attempt(tasks: TaskContext, execution_id: str) -> str | None:
    """The execution that the task's `retry` made of it; one that somebody asked for is none."""
    sql = """
    SELECT again.execution_id FROM executions AS again JOIN executions AS before
      ON before.execution_id = again.retry_of
    WHERE again.retry_of = ? AND again.attempt = before.attempt + 1
    """
    row = tasks.store.row(sql, (execution_id,))
    return None if row is None else str(row["execution_id"])


def _let_go(tasks: TaskContext, execution_id: str) -> int:
    detail = f"let go of it, it goes on: ctrl-exec execution log -f {execution_id}"
    document = {"ok": False, "error": "interrupted", "detail": detail, "executionId": execution_id}
    tasks.output.answer(document, lambda: tasks.output.message(detail))
    return errors.INTERRUPTED


def verdict(execution: Execution) -> str:
    """How it ended, in a line."""
    parts = [execution.status]
    if execution.exit_code is not None:
        parts.append(f"exit {execution.exit_code}")
    if execution.reason:
        parts.append(execution.reason)
    return f"execution {execution.execution_id}: {', '.join(parts)}"


def exit_code(execution: Execution) -> int:
    """0 for SUCCESS, 124 for TIMED_OUT, 1 for every other end."""
    if execution.status == "SUCCESS":
        return errors.OK
    return errors.TIMED_OUT if execution.status == "TIMED_OUT" else errors.FAILED


def abort(tasks: TaskContext, execution_id: str, _arguments: Arguments) -> int:
    """Have one end; one that is over is no error."""
    from ctrl_exec.tasks.execution import execution_requests

    execution = execution_requests.abort(tasks.store, tasks.identity, execution_id)
    document = {"ok": True, **encoded(tasks, execution)}
    tasks.output.answer(document, lambda: tasks.output.line(f"{execution_id}: {execution.status}"))
    return errors.OK


def retry(tasks: TaskContext, execution_id: str, arguments: Arguments) -> int:
    """Execute it once more with the parameters it had; print the new id."""
    from ctrl_exec.tasks.execution import execution_requests

    execution = execution_requests.retry(
        tasks.store, tasks.identity, execution_id, lambda contents: _sealed(tasks, contents)
    )
    return _tell_begun(tasks, execution, arguments)


def encoded(tasks: TaskContext, execution: Execution) -> dict[str, Any]:
    """The execution as the API gives it."""
    from ctrl_exec.tasks.execution.execution_requests import encode_execution

    return encode_execution(tasks.store, execution, max_running=tasks.context.config.tasks_max_running)


def _log_path(tasks: TaskContext, execution_id: str) -> str:
    from ctrl_exec.tasks.execution.carriage import ExecutionFiles

    try:
        return ExecutionFiles(tasks.context.config.executions_dir).log_path(execution_id)
    except ValueError as error:
        raise InvalidInputError(str(error)) from error


def remove(tasks: TaskContext, execution_id: str, _arguments: Arguments) -> int:
    """Delete one that is over, with its log."""
    from ctrl_exec.tasks.execution import execution_requests
    from ctrl_exec.tasks.execution.carriage import ExecutionFiles

    files = ExecutionFiles(tasks.context.config.executions_dir)
    execution_requests.remove(tasks.store, tasks.identity, execution_id, files)
    return tasks.say({"removed": execution_id}, f"removed {execution_id}")


_ACTS = {
    "show": show,
    "log": show_log,
    "abort": abort,
    "retry": retry,
    "approve": approve,
    "reject": reject,
    "remove": remove,
}

COMMANDS = {
    "execution": Command(
        "list, show, follow, abort and repeat executions of tasks",
        execute_execution,
        arguments=action_places(ACTIONS),
        options=(
            *CREDENTIAL_OPTIONS,
            Option(("-f", "--follow"), "log, retry: show the log as it comes, to the end"),
            Option(("--task",), "list: of this task only", "TASK", completes="task"),
            Option(("--project",), "list: of this project only", "ID", completes="project"),
            Option(("--status",), "list: those in this state; again for more", "STATUS", is_repeated=True),
            Option(("--comment",), "approve, reject: a line that is kept with it", "TEXT"),
            Option(("--step",), "approve, reject: which step, where several wait", "N"),
            Option(("--limit",), f"list: so many of the newest, up to {_MOST} (default: {_SHOWN})", "N"),
        ),
        actions=ACTIONS,
        description=(
            "An execution is named by its id, or by the name of its task: the newest of it. With"
            " -f the exit code is that of the end: 0 SUCCESS, 124 TIMED_OUT, 1 any other; Ctrl-C ends the"
            " watching, not the execution."
        ),
        examples=(
            "ctrl-exec execution list --task Greet --status FAILED",
            "ctrl-exec execution log -f Greet",
        ),
        exit_codes=(0, 1, 2, 3, 124, 130),
    ),
}
