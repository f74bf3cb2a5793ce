"""Carrying one run: the script's lock, the durable record, the script itself, the record's end.

Owns the order of these steps, the same for a run whose caller waits and for a detached one. Has
decided nothing: what may run, and for whom, is settled before.
"""

from __future__ import annotations

import json
import os
import select
import time
from contextlib import suppress

from ctrl_exec.common import process
from ctrl_exec.common.clock import iso_z, monotonic, utc_now
from ctrl_exec.common.errors import BusyError, ConflictError, CtrlExecError, ProgramError, StorageError
from ctrl_exec.common.messages import output_text
from ctrl_exec.common.value import replace, value
from ctrl_exec_agent.runner import Job, Outcome, run_script
from ctrl_exec_agent.spool import DONE, RUNNING, Spool, unlock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from ctrl_exec.common.log import Log

START_WAIT_S = 30.0  # a detached run says within this whether it has begun
STILL_RUNNING = "a run with this reqid is still going on"
_CUT_OFF = "a run with this reqid was cut off here"
_BUSY, _REFUSED, _STARTED = "busy", "refused", "started"


@value
class Order:
    """A run that was found permitted: what, for whom, under which ids."""

    owner: str
    reqid: str
    script: str
    has_lock: bool
    job: Job
    encoding: str | None = None
    peer_ip: str = ""
    username: str = ""


class Carrier:
    """Carries orders; one run at a time in one process."""

    def __init__(self, spool: Spool, log: Log) -> None:
        self._spool = spool
        self._log = log

    def carry(self, order: Order, on_start: Callable[[], None] | None = None) -> dict[str, Any]:
        """Run it to its end and give the answer, which is in the spool by then.

        A request id is one run: when its order comes again, for a network may be late with the first
        one, the answer is the recorded one and nothing is run.

        Raises: BusyError if the script runs already; ConflictError if the request id does, or was cut
        off; StorageError if the run could not be recorded. Nothing was run then.
        """
        known = self._known_answer(order)
        if known is not None:
            if on_start is not None:
                on_start()
            return known
        lock = self._take_lock(order)
        is_gone = True
        try:
            record = self._begin(order)
            if on_start is not None:
                on_start()
            outcome = run_script(_with_lock(order.job, lock))
            is_gone = outcome.is_group_gone
            answer = answer_of(outcome, order.encoding)
            self._finish(order, record, answer)
        finally:
            self._give_lock(lock, is_free=is_gone)
        self._log.info("run", **_names(order), exit=outcome.exit, error=outcome.error or None)
        return answer

    def detach(self, order: Order, close: Iterable[int]) -> None:
        """Carry it in a process of its own; returns when the run has begun.

        Raises: as `carry`; ProgramError if there was no room for a process.
        """
        reading, writing = os.pipe2(os.O_CLOEXEC)
        try:
            process.detach(
                lambda: self._carry_detached(order, writing),
                close=(reading, *close),
                keep_stderr=self._log.target == "stderr",
            )
        finally:
            os.close(writing)
        try:
            report = _read_report(reading)
        finally:
            os.close(reading)
        if report["state"] == _BUSY:
            raise BusyError(report["error"])
        if report["state"] == _REFUSED:
            raise ConflictError(report["error"])

    def _carry_detached(self, order: Order, report: int) -> None:
        def tell(state: str, error: str = "") -> None:
            with suppress(OSError):  # who asked may have been killed meanwhile; the run is on record
                os.write(report, json.dumps({"state": state, "error": error}).encode())
            os.close(report)

        try:
            self.carry(order, lambda: tell(_STARTED))
        except BusyError as error:
            tell(_BUSY, str(error))
        except CtrlExecError as error:
            tell(_REFUSED, str(error))

    def _take_lock(self, order: Order) -> int | None:
        if not order.has_lock:
            return None
        lock = self._spool.lock(order.script)
        if lock is None:
            if self._spool.is_running(order.owner, order.reqid, time.time()):
                raise ConflictError(STILL_RUNNING)
            raise BusyError("script already running")
        return lock

    def _known_answer(self, order: Order) -> dict[str, Any] | None:
        """The answer of a run of that request id, None if there was none here."""
        try:
            record = self._spool.load(order.owner, order.reqid, time.time())
        except StorageError:  # it says nothing: the run is new
            return None
        status = record.get("status") if record is not None else ""
        if status == RUNNING:
            raise ConflictError(STILL_RUNNING)
        if record is None or record.get("script") != order.script:  # an older peer may use an id again
            return None
        if status != DONE:
            raise ConflictError(_CUT_OFF)
        self._log.warning("run", **_names(order), note="the order came again: answered from the record")
        return {key: record[key] for key in ANSWER_KEYS if key in record}

    def _begin(self, order: Order) -> dict[str, Any]:
        try:
            record = self._spool.begin(order.owner, order.reqid, order.script)
        except FileExistsError as error:  # the same order came in twice at this very moment
            raise ConflictError(STILL_RUNNING) from error
        self._log.info("run-start", **_names(order))
        return record

    def _finish(self, order: Order, record: dict[str, Any], answer: dict[str, Any]) -> None:
        try:
            self._spool.finish(record, answer)
        except StorageError as error:
            self._log.error("run", **_names(order), error=f"the result could not be recorded: {error}")

    @staticmethod
    def _give_lock(lock: int | None, *, is_free: bool) -> None:
        if lock is None:
            return
        if is_free:
            unlock(lock)
        else:
            os.close(lock)  # what survived KILL keeps its own copy, and so the lock


ANSWER_KEYS = ("exit", "stdout", "stderr", "encoding", "error", "timed_out", "truncated")


def answer_of(outcome: Outcome, encoding: str | None) -> dict[str, Any]:
    """The keys of a result that the outcome fills."""
    answer: dict[str, Any] = {
        "exit": outcome.exit,
        "stdout": output_text(outcome.stdout, encoding),
        "stderr": output_text(outcome.stderr, encoding),
    }
    if encoding == "base64":
        answer["encoding"] = encoding
    if outcome.error:
        answer["error"] = outcome.error
    if outcome.timed_out:
        answer["timed_out"] = True
    if outcome.dropped_stdout or outcome.dropped_stderr:
        answer["truncated"] = {"stdout": outcome.dropped_stdout, "stderr": outcome.dropped_stderr}
    return answer


def script_stdin(order: dict[str, Any]) -> bytes:
    """The JSON object every script finds on its standard input, with the time of now."""
    return json.dumps(order | {"timestamp": iso_z(utc_now())}).encode() + b"\n"


def _with_lock(job: Job, lock: int | None) -> Job:
    return job if lock is None else replace(job, lock=lock)


def _names(order: Order) -> dict[str, str]:
    return {
        "script": order.script, "reqid": order.reqid, "dispatcher": order.owner,
        "peer": order.peer_ip, "user": order.username,
    }  # fmt: skip


def _read_report(fd: int) -> dict[str, str]:
    """What the detached process says of its start. Raises: ProgramError if it says nothing."""
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    deadline = monotonic() + START_WAIT_S
    content = b""
    while poller.poll(max(0, int((deadline - monotonic()) * 1000))):
        chunk = os.read(fd, 65536)
        content += chunk
        if not chunk:
            break
    try:
        report: dict[str, str] = json.loads(content)
    except ValueError as error:
        raise ProgramError("the detached run did not begin") from error
    return report
