"""One run from its record's first line to its last: the script's turns, its output, a cancel.

Owns the run while it lasts, step by step, so that the process can serve somebody who looks on
meanwhile. Whether it may begin, and which process it is in, is the carrier's.
"""

from __future__ import annotations

import os
import select
import signal

from ctrl_exec.common.clock import iso_z, monotonic, utc_now
from ctrl_exec.common.errors import ConflictError, StorageError
from ctrl_exec.common.json_text import dumps
from ctrl_exec.common.messages import output_text
from ctrl_exec.common.process import set_handler
from ctrl_exec.common.suppression import suppress
from ctrl_exec.common.value import replace, value
from ctrl_exec_agent.kept_output import Outputs
from ctrl_exec_agent.runner import GATHER_S, Job, Outcome, ScriptRun, kept_output
from ctrl_exec_agent.spool import LEFT_BEHIND, Spool, unlock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from ctrl_exec.common.log import Log

ANSWER_KEYS = ("exit", "encoding", "error", "timed_out", "truncated")
"""The keys of a result, beside the output."""
STILL_RUNNING = "a run with this reqid is still going on"
_FAILED = {"exit": -1, "error": "an error of ours ended the watch over the run"}


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


class Carried:
    """One run that was begun here, from its record's first line to its last."""

    def __init__(self, spool: Spool, log: Log, order: Order, lock: int | None) -> None:
        self._spool = spool
        self._log = log
        self._order = order
        self._lock = lock
        paths = spool.output_paths(order.owner, order.reqid)
        self._stdout, self._stderr = (kept_output(path, order.job) for path in paths)
        self.outputs = Outputs(self._stdout, self._stderr, order.encoding)
        self._run = ScriptRun(_with_lock(order.job, lock), self._stdout, self._stderr, is_alone=True)
        self._record: dict[str, Any] = {}
        self._summons: Summons | None = None
        self._flush_at: float | None = None
        self._note_at: float | None = None
        self.answer: dict[str, Any] = {}

    @property
    def is_over(self) -> bool:
        """Whether the script has ended and its result is on record."""
        return bool(self.answer)

    def start(self) -> None:
        """Begin the record, and then the script. Raises: as `Carrier.begin`."""
        order = self._order
        try:
            # from before the record says that we heed it
            self._summons = Summons()
            self._record = self._spool.begin(order.owner, order.reqid, order.script, order.encoding)
        except BaseException as error:
            self._let_go(is_gone=True)
            if isinstance(error, FileExistsError):  # the same order came in twice at this very moment
                raise ConflictError(STILL_RUNNING) from error
            if isinstance(error, OSError):
                raise StorageError(f"no room for it ({error.strerror})") from error
            raise
        self._log.info("run-start", **names_of(order))
        self._run.start()
        self._note_at = monotonic() + GATHER_S
        self._finish_if_over()

    def turn(self, guests: Mapping[int, int] | None = None, wait_s: float | None = None) -> set[int]:
        """Wait once, at most so long, and do what is due; gives which guests (fd: event) are ready."""
        if self._summons is None:
            return set()
        try:
            heard = self._summons.fd
            ready = self._run.turn({**(guests or {}), heard: select.POLLIN}, self._wait_s(wait_s))
            if heard in ready:
                self._heed_summons(self._summons)
            self._keep_output()
            self._finish_if_over()
        except BaseException:
            self.answer = self.answer or dict(_FAILED)
            self._let_go(is_gone=False)  # what runs keeps the lock, whatever became of us
            raise
        return ready

    def carry_on(self) -> None:
        """Go on to the end."""
        while not self.is_over:
            self.turn()
        self.outputs.close()

    def is_worth_showing(self) -> bool:
        """Whether there is output that may be shown before the end, or that is still some time away."""
        return bool(self._stdout.settled() or self._stderr.settled() or self._note_at is None)

    def _wait_s(self, wait_s: float | None) -> float | None:
        now = monotonic()
        due = [each - now for each in (self._flush_at, self._note_at) if each is not None]
        if wait_s is not None:
            due.append(wait_s)
        return max(0.0, min(due)) if due else None

    def _heed_summons(self, summons: Summons) -> None:
        summons.take()
        if self._spool.is_cancel_asked(self._order.owner, self._order.reqid):
            self._run.cancel()

    def _keep_output(self) -> None:
        """Write a little output to its file when no more has come for a moment, much of it at once."""
        now = monotonic()
        if self._note_at is not None and now >= self._note_at:
            self._note_at = None
            if self._run.pid is not None and not self._run.is_over:
                with suppress(StorageError):
                    self._spool.note_script(self._order.owner, self._order.reqid, self._run.pid)
        if not (self._stdout.has_fresh or self._stderr.has_fresh):
            self._flush_at = None
        elif self._flush_at is None:
            self._flush_at = now + GATHER_S
        elif now >= self._flush_at:
            self._stdout.flush()
            self._stderr.flush()
            self._flush_at = None

    def _finish_if_over(self) -> None:
        if not self._run.is_over or self.is_over:
            return
        outcome = self._run.outcome()
        answer = answer_of(outcome, self._order.encoding)
        outputs = {"stdout": self._stdout, "stderr": self._stderr}
        for output in outputs.values():
            if output.is_filed:
                output.sync()
        filed = [stream for stream, output in outputs.items() if output.is_filed]
        texts = {
            stream: output_text(output.read(0, output.size()), self._order.encoding)
            for stream, output in outputs.items()
            if stream not in filed
        }
        try:
            self._spool.finish(self._record, answer | texts, filed)
        except StorageError as error:
            self._log.error(
                "run", **names_of(self._order), error=f"the result could not be recorded: {error}"
            )
        self.answer = answer
        self._let_go(is_gone=outcome.is_gone)
        self._log.info("run", **names_of(self._order), exit=outcome.exit, error=outcome.error or None)

    def _let_go(self, *, is_gone: bool) -> None:
        self._run.close()
        if self._summons is not None:
            self._summons.close()
            self._summons = None
        if self._lock is not None:
            if is_gone:
                unlock(self._lock)
            else:
                os.close(self._lock)  # what survived KILL keeps its own copy, and so the lock
            self._lock = None


class Summons:
    """SIGUSR2 says that somebody left word for this process's run; `fd` is readable then."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        set_handler(signal.SIGUSR2, self._hear)

    def _hear(self, _number: int, _frame: object) -> None:
        os.eventfd_write(self.fd, 1)

    def take(self) -> None:
        """It was heard."""
        with suppress(BlockingIOError):
            os.eventfd_read(self.fd)

    def close(self) -> None:
        """Heed it no longer: one that comes too late must do no harm."""
        set_handler(signal.SIGUSR2, None)
        os.close(self.fd)


def answer_of(outcome: Outcome, encoding: str | None) -> dict[str, Any]:
    """The keys of a result that the outcome fills, save the output itself."""
    answer: dict[str, Any] = {"exit": outcome.exit}
    if encoding == "base64":
        answer["encoding"] = encoding
    if outcome.error:
        answer["error"] = outcome.error
    if outcome.timed_out:
        answer["timed_out"] = True
    if not outcome.is_gone:
        answer[LEFT_BEHIND] = True
    if outcome.dropped_stdout or outcome.dropped_stderr:
        answer["truncated"] = {"stdout": outcome.dropped_stdout, "stderr": outcome.dropped_stderr}
    return answer


def script_stdin(order: dict[str, Any]) -> bytes:
    """The JSON object every script finds on its standard input, with the time of now."""
    return dumps(order | {"timestamp": iso_z(utc_now())}).encode() + b"\n"


def _with_lock(job: Job, lock: int | None) -> Job:
    return job if lock is None else replace(job, lock=lock)


def names_of(order: Order) -> dict[str, str]:
    """How every log line of the run names it."""
    return {
        "script": order.script, "reqid": order.reqid, "dispatcher": order.owner,
        "peer": order.peer_ip, "user": order.username,
    }  # fmt: skip
