"""A task on the wire, which is also how its definition is stored: camelCase, `…Fg`, `…Ts`.

Owns the keys and their order, which is the seed's; keys beyond it appear only where their feature is
used. What can't be judged from the task alone (cron, templates, other objects) is checked elsewhere.
"""

from __future__ import annotations

from ctrl_exec.common.value import replace
from ctrl_exec.tasks.forms import Form
from ctrl_exec.tasks.kinds_codec import DECODERS, SUB_OBJECTS, encode_kind
from ctrl_exec.tasks.models import (
    EVENTS,
    MISSED_POLICIES,
    POLICIES,
    TASK_TYPES,
    UNIT_SECONDS,
    Calendar,
    LocalCommand,
    Retry,
    Schedule,
    Subscription,
    Task,
)
from ctrl_exec.tasks.parameters import decode_parameters, encode_parameter, is_date

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

OWN_KEYS = ("taskId", "creationTs", "updateTs", "userId")
"""Set by us; a client may send them back as it got them."""
MOST_RETENTION_DAYS = 36500
MOST_TIMEOUT = 10**6
_POLICY_SYNONYMS = {"CHAIN": "SMART_CHAINING", "REPLACE": "REPLACEMENT", "CONCURRENT": "CONCURRENCY"}
_UNIT_SYNONYMS = {f"{unit}S": unit for unit in UNIT_SECONDS}
_YEAR_S = 366 * 86400
_CRON_LIMIT = 1000
_MOST_SCHEDULES = 50
_MOST_DATES = 4000
_MOST_ATTEMPTS = 100
_ICAL_LIMIT = 1 << 18


def decode_task(document: dict[str, Any], current: Task | None = None) -> Task:
    """The task that a document describes; ids and times are the current one's, or empty.

    Raises: InvalidFieldsError naming every key that is wrong.
    """
    form = Form(document)
    own = _check_own(form, current)
    schedules = tuple(_decode_schedule(each) for each in form.items("schedules", (), most=_MOST_SCHEDULES))
    timeout, timeout_unit = decode_timeout(form)
    task = Task(
        **own,
        project_id=form.text("projectId", most=64, least=1),
        name=form.name(),
        kind=_decode_kind(form),
        description=form.text("description", ""),
        parameters=decode_parameters(form),
        notifiers=_decode_notifiers(form),
        is_enabled=form.flag("enabledFg", True),
        is_scheduled=form.flag("scheduledFg", False),
        cron_expression=form.text("cronExpression", None, most=_CRON_LIMIT, least=1),
        cron_timezone=form.text("cronTimezone", None, most=120, least=1),
        schedules=schedules,
        calendar=_decode_calendar(form.inner("calendar", None)),
        missed_policy=form.choice("missedRunPolicy", MISSED_POLICIES, "SKIP"),
        start_deadline_s=form.whole("startDeadline", 1, _YEAR_S, None),
        retry=_decode_retry(form.inner("retry", None)),
        timeout=timeout,
        timeout_unit=timeout_unit,
        retention_days=form.whole("executionRetentionPeriod", 0, MOST_RETENTION_DAYS, None),
    )
    task = replace(task, **_decode_policy(form))
    if task.is_scheduled and not task.cron_expression and not schedules:
        form.refuse("cronExpression", "required with scheduledFg true")
    form.finish()
    return task


def _check_own(form: Form, current: Task | None) -> dict[str, Any]:
    if current is None:
        return {"task_id": ""}
    own = encode_task(current)
    for key in OWN_KEYS:
        given = form.raw(key)
        if given is not None and given != own[key]:
            form.refuse(key, f"expected {own[key]}: it never changes by a request")
    return {
        "task_id": current.task_id,
        "user_id": current.user_id,
        "created_ns": current.created_ns,
        "updated_ns": current.updated_ns,
        "version": current.version,
    }


def _decode_kind(form: Form) -> Any:
    """The sub-object of the task's type; those of the others may be null."""
    task_type = form.choice("taskType", TASK_TYPES, None)
    if task_type is None:
        form.refuse("taskType", "required")
    for other, key in SUB_OBJECTS.items():
        if form.raw(key) is not None and task_type is not None and other != task_type:
            form.refuse(key, f"expected only with taskType {other}")
    if task_type is None:
        return LocalCommand()
    inner = form.inner(SUB_OBJECTS[task_type])
    if inner is None:
        return LocalCommand()
    kind = DECODERS[task_type](inner)
    inner.close()
    return kind


def decode_timeout(form: Form) -> tuple[int | None, str | None]:
    """`timeout` and its unit, both or neither; of tasks and of projects."""
    timeout = form.whole("timeout", 1, MOST_TIMEOUT, None)
    unit = form.choice("timeoutDurationUnit", UNIT_SECONDS, None, synonyms=_UNIT_SYNONYMS)
    if timeout is not None and unit is None:
        form.refuse("timeoutDurationUnit", "required with a timeout")
    return timeout, unit


def _decode_policy(form: Form) -> dict[str, Any]:
    policy = form.choice("multipleExecutionPolicy", POLICIES, "REJECT", synonyms=_POLICY_SYNONYMS)
    most = form.whole("maxConcurrency", 1, 10_000, None)
    if most is not None and policy != "CONCURRENCY":
        form.refuse("maxConcurrency", "expected only with CONCURRENCY")
    if most is None and policy == "CONCURRENCY":
        form.refuse("maxConcurrency", "required with CONCURRENCY")
    return {"policy": policy, "max_concurrency": most}


def _decode_notifiers(form: Form) -> tuple[Subscription, ...]:
    given = form.mapping("taskNotifierMap", {})
    found = []
    for notifier_id, content in given.items():
        path = f"taskNotifierMap.{ascii(notifier_id)[1:-1][:80]}"
        if not isinstance(content, dict):
            form.refuse(path, "expected an object")
            continue
        inner = Form(content, f"{path}.", form.faults)
        events = inner.strings("events", least=1, most=len(EVENTS))
        if not set(events) <= set(EVENTS):
            inner.refuse("events", "expected of " + ", ".join(EVENTS))
        found.append(Subscription(notifier_id, events, inner.whole("afterFailures", 1, 1000, None)))
        inner.close()
    return tuple(found)


def _decode_schedule(form: Form) -> Schedule:
    found = Schedule(
        cron_expression=form.text("cronExpression", most=_CRON_LIMIT, least=1),
        timezone=form.text("cronTimezone", None, most=120, least=1),
        parameter_map=form.mapping("parameterMap", {}),
    )
    form.close()
    return found


def _decode_calendar(form: Form | None) -> Calendar | None:
    if form is None:
        return None
    dates = form.strings("dates", (), most=_MOST_DATES)
    for place, day in enumerate(dates):
        if not is_date(day):
            form.refuse(f"dates[{place}]", "expected a date YYYY-MM-DD")
    found = Calendar(
        mode=form.choice("mode", ("EXCLUDE", "RESTRICT")),
        dates=dates,
        ical=form.text("ical", None, most=_ICAL_LIMIT),
    )
    form.close()
    return found


def _decode_retry(form: Form | None) -> Retry | None:
    if form is None:
        return None
    found = Retry(
        max_attempts=form.whole("maxAttempts", 2, _MOST_ATTEMPTS),
        delay_s=form.whole("delay", 0, 7 * 86400, 0),
        backoff=form.number("backoff", 1, 10, 1),
    )
    form.close()
    return found


def encode_task(task: Task) -> dict[str, Any]:
    """The task as the wire has it, keys in the seed's order."""
    return {
        "taskId": task.task_id,
        "creationTs": task.created_ns,
        "updateTs": task.updated_ns,
        "userId": task.user_id,
        **encode_definition(task),
    }


def encode_definition(task: Task) -> dict[str, Any]:
    """What of a task a client decides."""
    policy: dict[str, Any] = {"multipleExecutionPolicy": task.policy}
    if task.max_concurrency is not None:
        policy["maxConcurrency"] = task.max_concurrency
    return {
        "projectId": task.project_id,
        "name": task.name,
        "description": task.description,
        "parameters": [encode_parameter(each) for each in task.parameters],
        **policy,
        "taskNotifierMap": {each.notifier_id: _encode_subscription(each) for each in task.notifiers},
        **({} if task.is_enabled else {"enabledFg": False}),
        "scheduledFg": task.is_scheduled,
        "cronExpression": task.cron_expression,
        **_encode_clock(task),
        "timeout": task.timeout,
        "timeoutDurationUnit": task.timeout_unit,
        "executionRetentionPeriod": task.retention_days,
        "taskType": task.task_type,
        SUB_OBJECTS[task.task_type]: encode_kind(task.kind),
    }


def _encode_subscription(each: Subscription) -> dict[str, Any]:
    document: dict[str, Any] = {"events": list(each.events)}
    return document if each.after_failures is None else document | {"afterFailures": each.after_failures}


def _encode_clock(task: Task) -> dict[str, Any]:
    """What of the clock is used beyond the seed."""
    document: dict[str, Any] = {}
    if task.cron_timezone is not None:
        document["cronTimezone"] = task.cron_timezone
    if task.schedules:
        document["schedules"] = [_encode_schedule(each) for each in task.schedules]
    if task.calendar is not None:
        calendar = task.calendar
        document["calendar"] = {"mode": calendar.mode, "dates": list(calendar.dates)}
        document["calendar"] |= {} if calendar.ical is None else {"ical": calendar.ical}
    if task.missed_policy != "SKIP":
        document["missedRunPolicy"] = task.missed_policy
    if task.start_deadline_s is not None:
        document["startDeadline"] = task.start_deadline_s
    if task.retry is not None:
        retry = task.retry
        document["retry"] = {
            "maxAttempts": retry.max_attempts, "delay": retry.delay_s, "backoff": retry.backoff,
        }  # fmt: skip
    return document


def _encode_schedule(each: Schedule) -> dict[str, Any]:
    document: dict[str, Any] = {"cronExpression": each.cron_expression}
    if each.timezone is not None:
        document["cronTimezone"] = each.timezone
    return document | ({"parameterMap": each.parameter_map} if each.parameter_map else {})


def merged(original: Any, patch: Any) -> Any:
    """A JSON document with a merge patch applied. Source: RFC 7396 §2."""
    if not isinstance(patch, dict):
        return patch
    made = dict(original) if isinstance(original, dict) else {}
    for key, content in patch.items():
        if content is None:
            made.pop(key, None)
        else:
            made[key] = merged(made.get(key), content)
    return made


def patched(task: Task, patch: dict[str, Any]) -> dict[str, Any]:
    """A task's document with a merge patch applied, without the old type's part where that changes."""
    current = encode_task(task)
    if patch.get("taskType", task.task_type) != task.task_type:
        del current[SUB_OBJECTS[task.task_type]]
    made: dict[str, Any] = merged(current, patch)
    return made
