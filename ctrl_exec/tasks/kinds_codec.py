"""The four kinds of tasks on the wire, each a sub-object such as `localCommandTask`.

Owns their keys and what of a kind can be judged without looking at anything else.
"""

from __future__ import annotations

import re

from ctrl_exec.common.errors import CtrlExecError
from ctrl_exec.common.names import check_script
from ctrl_exec.tasks.forms import is_line
from ctrl_exec.tasks.models import (
    AGENT_SCRIPT,
    HTTP_REQUEST,
    LOCAL_COMMAND,
    LOG_OUTPUTS,
    ROLES,
    UNIT_SECONDS,
    WORKFLOW,
    AgentScript,
    HttpRequest,
    LocalCommand,
    Rolling,
    Step,
    Workflow,
)
from ctrl_exec.tasks.templates import has_template, mentions_name
from ctrl_exec.tasks.ulid import ULID

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ctrl_exec.tasks.forms import Form

    Kind = LocalCommand | AgentScript | Workflow | HttpRequest

SUB_OBJECTS = {
    LOCAL_COMMAND: "localCommandTask",
    AGENT_SCRIPT: "agentScriptTask",
    WORKFLOW: "workflowTask",
    HTTP_REQUEST: "httpRequestTask",
}
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
_PERCENT = re.compile(r"(100|[1-9]?[0-9])%", re.ASCII)
_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,200}", re.ASCII)
_URL = re.compile(r"https?://[^\s/?#@\\]+([/?][^\s#\\]*)?", re.IGNORECASE)
# what a client of HTTP says itself, and what would change where a request ends
_OWN_HEADERS = frozenset(
    ("host", "content-length", "transfer-encoding", "connection", "te", "upgrade", "trailer")
)
_MOST_STEPS = 200
_MOST_HOSTS = 10_000
MAX_LOCK_WAIT_S = 3600
MAX_PAUSE_S = 86400


def decode_local_command(form: Form) -> LocalCommand:
    """Exactly one of `commandLine`, for a shell, and `program` with `args`."""
    uses_shell = form.flag("useShellFg", False)
    kind = LocalCommand(
        uses_shell=uses_shell,
        command_line=form.text("commandLine", None, least=1),
        program=form.text("program", None, most=4096, least=1),
        args=form.strings("args", None),
        log_output=form.choice("logOutput", LOG_OUTPUTS, "ALWAYS"),
    )
    right, wrong = ("commandLine", "program") if uses_shell else ("program", "commandLine")
    if not form.has(right):
        form.refuse(right, f"required with useShellFg {str(uses_shell).lower()}")
    for key in (wrong, "args") if uses_shell else (wrong,):
        if form.has(key):
            form.refuse(key, f"expected null with useShellFg {str(uses_shell).lower()}")
    for key, content in (("commandLine", kind.command_line), ("program", kind.program)):
        _refuse_template(form, key, content)
    return kind if uses_shell or kind.args is not None else LocalCommand(
        program=kind.program, args=(), log_output=kind.log_output
    )  # fmt: skip


def _refuse_template(form: Form, key: str, content: str | None) -> None:
    if content is not None and mentions_name(content):
        form.refuse(key, "expected no {{NAME}} here; a command finds it in its environment as CPP_NAME")


def decode_agent_script(form: Form) -> AgentScript:
    """A script, its hosts by patterns."""
    script = form.text("script", most=64)
    try:
        check_script(script)
    except CtrlExecError as error:
        form.refuse("script", str(error))
    hosts = form.strings("hosts", least=1, most=_MOST_HOSTS, each_most=300)
    for place, host in enumerate(hosts):
        if has_template(host) or not host.strip() or not is_line(host):
            form.refuse(f"hosts[{place}]", "expected a name, or a pattern such as web[01-20] or @tag=value")
    return AgentScript(
        script=script,
        args=form.strings("args", ()),
        hosts=hosts,
        batch=_decode_rolling(form.inner("batch", None)),
        lock_wait_s=form.whole("lockWait", 0, MAX_LOCK_WAIT_S, None),
        log_output=form.choice("logOutput", LOG_OUTPUTS, "ALWAYS"),
    )


def _decode_rolling(form: Form | None) -> Rolling | None:
    if form is None:
        return None
    found = Rolling(
        size=_count(form, "size", least=1),
        max_failures=_count(form, "maxFailures", least=0),
        pause_s=form.whole("pause", 0, MAX_PAUSE_S, 0),
    )
    form.close()
    return found


def _count(form: Form, key: str, least: int) -> int | str:
    given = form.raw(key)
    if isinstance(given, str) and _PERCENT.fullmatch(given) and int(given[:-1]) >= least:
        return given
    if given is None and least == 0:
        return 0
    if isinstance(given, int) and not isinstance(given, bool) and least <= given <= _MOST_HOSTS:
        return given
    form.refuse(key, f"expected a number from {least}, or a share such as 20%")
    return least


def decode_workflow(form: Form) -> Workflow:
    """Steps, each a task or an approval."""
    steps = tuple(_decode_step(each) for each in form.items("steps", most=_MOST_STEPS))
    if not steps:
        form.refuse("steps", "expected at least one step")
    mode = form.choice("mode", ("SEQUENTIAL", "CONCURRENT"), "SEQUENTIAL")
    if mode == "CONCURRENT" and any(step.condition for step in steps):
        form.refuse("mode", "conditions on the step before need SEQUENTIAL")
    return Workflow(steps=steps, mode=mode)


def _decode_step(form: Form) -> Step:
    kind = form.choice("stepType", ("TASK", "APPROVAL"), "TASK")
    common = {
        "name": form.name("name", ""),
        "on_failure": form.choice("onFailure", ("STOP", "CONTINUE"), "STOP"),
        "condition": form.choice("condition", ("SUCCESS", "FAILURE", "ALWAYS"), None),
    }
    if kind == "APPROVAL":
        timeout = form.whole("timeout", 1, 10**6, None)
        unit = form.choice("timeoutDurationUnit", UNIT_SECONDS, None)
        if (timeout is None) != (unit is None):
            form.refuse("timeoutDurationUnit", "expected with a timeout, and only then")
        step = Step(role=form.choice("role", ROLES), timeout=timeout, timeout_unit=unit, **common)
    else:
        task_id = form.matching("taskId", ULID, "expected a task's id")
        step = Step(task_id=task_id, parameter_map=form.mapping("parameterMap", {}), **common)
    form.close()
    return step


def decode_http_request(form: Form) -> HttpRequest:
    """An outgoing request; templates in its body and in the values of its query."""
    url = form.matching("url", _URL, "expected http:// or https:// with a host and no fragment")
    authority_and_path = url.partition("?")[0]
    _refuse_template(form, "url", authority_and_path)
    headers = form.mapping("headers", {}, most=64)
    for name, content in headers.items():
        if not _HEADER.fullmatch(name) or name.lower() in _OWN_HEADERS:
            form.refuse(f"headers.{ascii(name)[1:-1][:80]}", "expected a field name that may be set")
        elif not is_line(content) or mentions_name(content) or not content.isascii():
            form.refuse(f"headers.{name}", "expected one line of ASCII text without {{NAME}}")
    return HttpRequest(
        method=form.choice("method", _METHODS, "GET"),
        url=url,
        headers=tuple(headers.items()),
        body=form.text("body", None, most=1 << 20),
        expected=_expected(form),
    )


def _expected(form: Form) -> tuple[int, ...] | None:
    given = form.raw("expectedStatus")
    if given is None:
        return None
    several = given if isinstance(given, list) else [given]
    if several and all(
        isinstance(each, int) and not isinstance(each, bool) and 100 <= each <= 599 for each in several
    ):
        return tuple(several)
    form.refuse("expectedStatus", "expected a status, or an array of them")
    return None


DECODERS = {
    LOCAL_COMMAND: decode_local_command,
    AGENT_SCRIPT: decode_agent_script,
    WORKFLOW: decode_workflow,
    HTTP_REQUEST: decode_http_request,
}


def encode_kind(kind: Kind) -> dict[str, Any]:
    """The sub-object; an unused alternative within it is null."""
    if isinstance(kind, LocalCommand):
        return {
            "useShellFg": kind.uses_shell,
            "commandLine": kind.command_line,
            "program": kind.program,
            "args": None if kind.args is None else list(kind.args),
            "logOutput": kind.log_output,
        }
    if isinstance(kind, AgentScript):
        return {
            "script": kind.script,
            "args": list(kind.args),
            "hosts": list(kind.hosts),
            "batch": _encode_rolling(kind.batch),
            "lockWait": kind.lock_wait_s,
            "logOutput": kind.log_output,
        }
    if isinstance(kind, Workflow):
        return {"steps": [_encode_step(each) for each in kind.steps], "mode": kind.mode}
    return {
        "method": kind.method,
        "url": kind.url,
        "headers": dict(kind.headers),
        "body": kind.body,
        "expectedStatus": None if kind.expected is None else list(kind.expected),
    }


def _encode_rolling(batch: Rolling | None) -> dict[str, Any] | None:
    if batch is None:
        return None
    return {"size": batch.size, "maxFailures": batch.max_failures, "pause": batch.pause_s}


def _encode_step(step: Step) -> dict[str, Any]:
    document: dict[str, Any] = {"name": step.name} if step.name else {}
    if step.role:
        document |= {"stepType": "APPROVAL", "role": step.role}
        if step.timeout is not None:
            document |= {"timeout": step.timeout, "timeoutDurationUnit": step.timeout_unit}
    else:
        document |= {"taskId": step.task_id, "parameterMap": step.parameter_map}
    return document | {"onFailure": step.on_failure, "condition": step.condition}
