"""Run a script on hosts: resolve → authorise → lock → record → fan out → finish.

Owns the order of these steps, which clients can observe (core §5), and nothing of what happens
inside them. A run is carried by the process that calls; where hosts are unfinished when it must go
(read timeout, hang-up, drain, Ctrl-C), a detached carrier goes on.
"""

from __future__ import annotations

from ctrl_exec.common.errors import BusyError, InvalidInputError, LockedError, ProgramError
from ctrl_exec.common.messages import (
    ENCODINGS,
    MAX_TIMEOUT_S,
    RunCommand,
    arguments_of,
    secrets_of,
)
from ctrl_exec.common.names import check_reqid, check_script, new_reqid
from ctrl_exec.common.value import value
from ctrl_exec.operations.carrier import Carrier, Pause, detach_carrier
from ctrl_exec.operations.report import RunReport, report_of
from ctrl_exec.operations.rollout import Batch, batches_of, check_batch
from ctrl_exec.services.records import new_record
from ctrl_exec.services.targets import resolve_targets

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ctrl_exec.common.messages import HostResult
    from ctrl_exec.dispatcher import Dispatcher
    from ctrl_exec.operations.once import Once
    from ctrl_exec.services.authority import Caller
    from ctrl_exec.services.journal import RunJournal
    from ctrl_exec.services.locks import HeldLocks
    from ctrl_exec.services.targets import Target
    from ctrl_exec.services.transport import Interrupt

__all__ = ["Batch", "RunReport", "RunRequest", "check_request", "run"]

MAX_LOCK_WAIT_S = 3600
MAX_READ_TIMEOUT_S = 86_400


@value
class RunRequest:
    """What a caller wants run.

    `hosts` are patterns (`ctrl_exec.services.targets`). `timeout_s` bounds the script on the agent,
    `read_timeout_s` our patience with its silence (None: as configured), `lock_wait_s` how long to
    try for the locks. `agent_port` replaces the recorded ports where a pattern names none. With a
    `batch` the run is rolled out (`ctrl_exec.operations.rollout`). `secrets` reach the scripts on their
    standard input and nothing else; an agent that does not know them is `refused`. `reqid` is for
    callers that must know it before anything is begun; no two runs have the same.
    """

    hosts: tuple[str, ...]
    script: str
    args: tuple[str, ...] = ()
    timeout_s: int | None = None
    read_timeout_s: float | None = None
    lock_wait_s: float = 0
    encoding: str = "utf-8"
    is_async: bool = False
    agent_port: int | None = None
    batch: Batch | None = None
    secrets: Mapping[str, str] | None = None
    reqid: str | None = None


def check_request(request: RunRequest) -> RunRequest:
    """The request itself, when every value in it is one. Raises: InvalidInputError naming the field."""
    check_script(request.script)
    arguments_of({"args": list(request.args)})
    if request.encoding not in ENCODINGS:
        raise InvalidInputError(f"encoding: expected one of {', '.join(ENCODINGS)}", field="encoding")
    _check_bound("timeout", request.timeout_s, 1, MAX_TIMEOUT_S)
    _check_bound("read_timeout", request.read_timeout_s, 0.1, MAX_READ_TIMEOUT_S)
    _check_bound("lock_wait", request.lock_wait_s, 0, MAX_LOCK_WAIT_S)
    _check_bound("port", request.agent_port, 1, 65535)
    secrets_of({"secrets": None if request.secrets is None else dict(request.secrets)})
    if request.reqid is not None:
        check_reqid(request.reqid)
    if request.batch is not None:
        check_batch(request.batch)
    return request


def _check_bound(field: str, given: float | None, least: float, most: float) -> None:
    # written so that NaN is refused too
    if given is not None and not least <= given <= most:
        raise InvalidInputError(f"{field}: expected a number from {least:g} to {most:g}", field=field)


def run(
    dispatcher: Dispatcher,
    caller: Caller,
    request: RunRequest,
    *,
    interrupt: Interrupt | None = None,
    on_result: Callable[[HostResult], None] | None = None,
    once: Once | None = None,
) -> RunReport:
    """Run the script on all hosts meant; gives one result for each, in the order asked.

    A host that fails is a result. With `is_async` the report comes at once and a detached carrier
    does the work. When `interrupt` fires the report holds what is known, and the run goes on. With
    `once`, a request that was sent before joins its run.

    Raises: InvalidInputError (hosts, script, args, a bound); DeniedError; UnknownAgentError;
    LockedError; ConflictError, SpentKeyError (`once`); StorageError, BusyError (nothing was started).
    """
    check_request(request)
    config = dispatcher.config
    targets = resolve_targets(
        request.hosts, dispatcher.registry, config.max_hosts, default_port=request.agent_port
    )
    reqid = request.reqid or new_reqid()
    dispatcher.authority.check(
        caller, "run", script=request.script, hosts=targets.names, args=request.args, reqid=reqid
    )
    hosts = targets.require()
    claim = None
    if once is not None:
        from ctrl_exec.operations.once import claim_run, join_run

        claim = claim_run(dispatcher, caller, once, reqid, interrupt)
        if not claim.is_ours:
            dispatcher.log.info("run", joined=claim.identity, user=caller.username, via=caller.via)
            patience_s = 0.0 if request.is_async else request.read_timeout_s or config.read_timeout
            return join_run(dispatcher, claim.identity, patience_s=patience_s, interrupt=interrupt)
    try:
        locks = _take_locks(dispatcher, hosts, request, reqid, interrupt)
        journal = _begin(dispatcher, caller, request, reqid, hosts, locks, expanded=targets.expanded)
    except BaseException:
        if claim is not None:
            claim.withdraw()
        raise
    if claim is not None:
        claim.settle()
    command = RunCommand(
        script=request.script,
        args=request.args,
        reqid=reqid,
        username=caller.username,
        token=dispatcher.authority.forwarded_token(caller),
        timeout=request.timeout_s,
        encoding=request.encoding if request.encoding != "utf-8" else None,
        secrets=request.secrets or None,
    )
    carrier = Carrier(
        dispatcher,
        journal,
        hosts,
        locks=locks,
        command=command,
        read_timeout_s=request.read_timeout_s,
        batch=request.batch,
    )
    dispatcher.log.info(
        "run-async" if request.is_async else "dispatch",
        reqid=reqid,
        script=request.script,
        hosts=len(hosts),
        user=caller.username,
        source=caller.source_ip,
        via=caller.via,
    )
    if request.is_async:
        return _start_detached(carrier, caller)
    return _carry_here(carrier, caller, interrupt, on_result)


def _begin(
    dispatcher: Dispatcher,
    caller: Caller,
    request: RunRequest,
    reqid: str,
    hosts: tuple[Target, ...],
    locks: HeldLocks,
    *,
    expanded: bool,
) -> RunJournal:
    """The record of the run, durable; without it the locks are let go. Raises: StorageError."""
    try:
        record = new_record(
            reqid,
            request.script,
            tuple(host.name for host in hosts),
            args=request.args,
            mode="async" if request.is_async else "sync",
            created=dispatcher.clock(),
            expanded=expanded,
            encoding=request.encoding,
            ports=tuple((host.name, host.port) for host in hosts if host.port != host.record.port),
            submitter=caller.username,
            submitter_ip=caller.source_ip,
            batches=batches_of([host.name for host in hosts], request.batch),
        )
        return dispatcher.results.begin(record)
    except BaseException:
        locks.close()
        raise


def _take_locks(
    dispatcher: Dispatcher,
    hosts: tuple[Target, ...],
    request: RunRequest,
    reqid: str,
    interrupt: Interrupt | None,
) -> HeldLocks:
    names = [host.name for host in hosts]
    facts = {"reqid": reqid, "script": request.script}
    try:
        locks = dispatcher.locks.hold_within(names, request.script, request.lock_wait_s, Pause(interrupt))
    except LockedError as error:
        dispatcher.log.warning("lock-conflict", hosts=error.conflicts, **facts)
        raise
    dispatcher.log.info("lock-acquire", hosts=len(names), **facts)
    return locks


def _start_detached(carrier: Carrier, caller: Caller) -> RunReport:
    try:
        return detach_carrier(carrier, keeps_stderr=caller.via != "cli")
    except (ProgramError, OSError) as error:
        carrier.give_up("not started: no process could be made to carry the run")
        raise BusyError(str(error)) from error


def _carry_here(
    carrier: Carrier,
    caller: Caller,
    interrupt: Interrupt | None,
    on_result: Callable[[HostResult], None] | None,
) -> RunReport:
    try:
        carrier.dispatch(interrupt, on_result)
        if carrier.is_finished:
            return report_of(carrier.finish(wants_output=True))
        return detach_carrier(carrier, keeps_stderr=caller.via != "cli")
    except (ProgramError, OSError) as error:  # no process to go on in: recovery finds the rest
        carrier.leave(str(error))
        return report_of(carrier.record_with_output())
    except BaseException as error:
        if carrier.is_finished:
            carrier.finish()
        else:
            carrier.leave(type(error).__name__)
        raise
