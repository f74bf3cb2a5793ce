"""What of a task can be judged only beside other things: cron, zones, templates, notifiers, workflow steps.

Owns these checks and how their faults are named. A task passes here at every save, import included.
"""

from __future__ import annotations

from ctrl_exec.common.errors import DeniedError, InvalidInputError
from ctrl_exec.tasks.forms import raise_faults
from ctrl_exec.tasks.models import AgentScript, HttpRequest, LocalCommand, Task, Workflow
from ctrl_exec.tasks.parameters import override_faults, secret_names
from ctrl_exec.tasks.templates import names_in
from ctrl_exec.tasks.workflow.nesting import nesting_faults

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from ctrl_exec.tasks.models import Calendar
    from ctrl_exec.tasks.store import Store


def check_task(store: Store, task: Task, find_task: Callable[[str], Task | None]) -> None:
    """Judge a task; `find_task` gives the tasks that its author may use as steps.

    Raises: InvalidFieldsError naming every fault.
    """
    faults: dict[str, str] = {}
    for key, fault in (
        *_clock_faults(task),
        *_template_faults(store, task),
        *_schedule_faults(task),
        *_notifier_faults(store, task),
        *_step_faults(store, task, find_task),
    ):
        faults.setdefault(key, fault)
    raise_faults(faults)


def _clock_faults(task: Task) -> Iterator[tuple[str, str]]:
    allow_seconds = isinstance(task.kind, (LocalCommand, AgentScript))
    own = ("", task.cron_expression, task.cron_timezone)
    others = (
        (f"schedules[{place}].", each.cron_expression, each.timezone)
        for place, each in enumerate(task.schedules)
    )
    for path, expression, zone in (own, *others):
        if expression is not None:
            yield from _faults_of(f"{path}cronExpression", _parse, expression, allow_seconds)
        if zone is not None:
            yield from _faults_of(f"{path}cronTimezone", _find_zone, zone)
    if task.calendar is not None:
        yield from _faults_of("calendar", _read_calendar, task.calendar)


def _parse(expression: str, allow_seconds: bool) -> None:
    from ctrl_exec.tasks.clock.cron import parse_cron

    parse_cron(expression, allow_seconds=allow_seconds)


def _find_zone(name: str) -> None:
    from ctrl_exec.tasks.clock.zones import zone_named

    zone_named(name)


def _read_calendar(calendar: Calendar) -> None:
    from ctrl_exec.tasks.clock.calendar import read_calendar

    read_calendar(calendar.mode, calendar.dates, calendar.ical)


def _faults_of(key: str, judge: Callable[..., None], *given: Any) -> Iterator[tuple[str, str]]:
    try:
        judge(*given)
    except InvalidInputError as error:
        yield key, str(error)


def template_places(task: Task) -> Iterator[tuple[str, str]]:
    """(key, text) of every place where `{{NAME}}` may stand."""
    kind = task.kind
    if isinstance(kind, LocalCommand) and kind.args is not None:
        yield from ((f"localCommandTask.args[{place}]", each) for place, each in enumerate(kind.args))
    elif isinstance(kind, AgentScript):
        yield from ((f"agentScriptTask.args[{place}]", each) for place, each in enumerate(kind.args))
    elif isinstance(kind, HttpRequest):
        yield "httpRequestTask.url", kind.url
        yield "httpRequestTask.body", kind.body or ""


def _template_faults(store: Store, task: Task) -> Iterator[tuple[str, str]]:
    secret = secret_names(task.parameters)
    known = {each.name for each in task.parameters} | constant_names(store, task.project_id)
    for key, text in template_places(task):
        try:
            names = names_in(text)
        except InvalidInputError as error:
            yield key, str(error)
            continue
        for name in names:
            if name in secret:
                yield key, f"{name} is a SECRET: it reaches commands by their environment or input only"
            elif name not in known:
                yield key, f"{name} is neither a parameter nor a constant"


def constant_names(store: Store, project_id: str) -> set[str]:
    """The names of a project's constants."""
    rows = store.rows("SELECT name FROM constants WHERE project_id = ?", (project_id,))
    return {row["name"] for row in rows}


def _schedule_faults(task: Task) -> Iterator[tuple[str, str]]:
    for place, each in enumerate(task.schedules):
        yield from _kept_faults(task, each.parameter_map, f"schedules[{place}].parameterMap")


def _kept_faults(task: Task, overrides: dict[str, Any], path: str) -> Iterator[tuple[str, str]]:
    """Faults of overrides that are stored for later starts; a SECRET's value is not stored."""
    for name in sorted(secret_names(task.parameters) & overrides.keys()):
        yield f"{path}.{name}", "a SECRET is not kept"
    yield from override_faults(task.parameters, overrides, path)


def _notifier_faults(store: Store, task: Task) -> Iterator[tuple[str, str]]:
    for each in task.notifiers:
        sql = "SELECT 1 FROM notifiers WHERE notifier_id = ? AND project_id = ?"
        if store.row(sql, (each.notifier_id, task.project_id)) is None:
            yield f"taskNotifierMap.{ascii(each.notifier_id)[1:-1][:80]}", "no notifier of this project"


def _step_faults(
    store: Store, task: Task, find_task: Callable[[str], Task | None]
) -> Iterator[tuple[str, str]]:
    if not isinstance(task.kind, Workflow):
        return
    for place, step in enumerate(task.kind.steps):
        if step.role:
            continue
        path = f"workflowTask.steps[{place}]"
        try:
            found = find_task(step.task_id)
        except DeniedError as error:
            yield f"{path}.taskId", str(error)
            continue
        if found is None:
            yield f"{path}.taskId", f"no task {step.task_id}"
        else:
            yield from _kept_faults(found, step.parameter_map, f"{path}.parameterMap")
            yield from _missing_faults(found, step.parameter_map, f"{path}.parameterMap")
    # with every task there is: what somebody may not see may lead back here all the same
    for place, fault in nesting_faults(task, lambda each: _load(store, each)):
        yield f"workflowTask.steps[{place}].taskId", fault


def _missing_faults(task: Task, overrides: dict[str, Any], path: str) -> Iterator[tuple[str, str]]:
    """What a step leaves without a value; a SECRET can't be given one."""
    for each in task.parameters:
        if each.is_required and each.default is None and overrides.get(each.name) is None:
            yield f"{path}.{each.name}", "required"


def _load(store: Store, task_id: str) -> Task | None:
    from ctrl_exec.tasks.definitions import load_task

    return load_task(store, task_id)
