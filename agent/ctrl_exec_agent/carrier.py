"""Having an order carried: its script's lock, its request id, the process that carries it.

Owns what keeps a run from beginning: the script runs already, or the order was here before. Has
decided nothing: what may run, and for whom, is settled before.
"""

from __future__ import annotations

import os
import select
import time

from ctrl_exec.common import process
from ctrl_exec.common.clock import monotonic
from ctrl_exec.common.errors import BusyError, ConflictError, CtrlExecError, ProgramError, StorageError
from ctrl_exec.common.json_text import dumps, loads
from ctrl_exec.common.suppression import suppress
from ctrl_exec_agent.carried import STILL_RUNNING, Carried, Order, names_of
from ctrl_exec_agent.spool import DONE, RUNNING, Found, Spool

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from ctrl_exec.common.log import Log

START_WAIT_S = 30.0  # a detached run says within this whether it has begun
_CUT_OFF = "a run with this reqid was cut off here"
_BUSY, _REFUSED, _STARTED = "busy", "refused", "started"


class Carrier:
    """Carries orders; one run at a time in one process."""

    def __init__(self, spool: Spool, log: Log) -> None:
        self._spool = spool
        self._log = log

    def begin(self, order: Order) -> Carried:
        """Have the script run; the rest is `turn` by `turn`.

        Raises: BusyError if the script runs already; ConflictError if the request id does, or was cut
        off; StorageError if the run could not be recorded. Nothing was run then.
        """
        lock = self._take_lock(order)
        carried = Carried(self._spool, self._log, order, lock)
        carried.start()
        return carried

    def known(self, order: Order) -> Found | None:
        """The record of a run of that request id, None if there was none here.

        A request id is one run: when its order comes again, for a network may be late with the first
        one, the answer is the recorded one and nothing is run.

        Raises: ConflictError if that run goes on, or was cut off.
        """
        try:
            found = self._spool.find(order.owner, order.reqid, time.time())
        except StorageError:  # it says nothing: the run is new
            return None
        if found is None:
            return None
        if found.status == RUNNING:
            raise ConflictError(STILL_RUNNING)
        if found.record.get("script") != order.script:  # an older peer may use an id again
            return None
        if found.status != DONE:
            raise ConflictError(_CUT_OFF)
        self._log.warning("run", **names_of(order), note="the order came again: answered from the record")
        return found

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
                os.write(report, dumps({"state": state, "error": error}).encode())
            os.close(report)

        try:
            if self.known(order) is not None:
                tell(_STARTED)
                return
            carried = self.begin(order)
        except BusyError as error:
            tell(_BUSY, str(error))
        except CtrlExecError as error:
            tell(_REFUSED, str(error))
        else:
            tell(_STARTED)
            carried.carry_on()

    def _take_lock(self, order: Order) -> int | None:
        if not order.has_lock:
            return None
        lock = self._spool.lock(order.script)
        if lock is None:
            if self._spool.is_running(order.owner, order.reqid, time.time()):
                raise ConflictError(STILL_RUNNING)
            raise BusyError("script already running")
        return lock


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
        report: dict[str, str] = loads(content)
    except ValueError as error:
        raise ProgramError("the detached run did not begin") from error
    return report
