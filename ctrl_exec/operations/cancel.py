"""Cancelling a run: the wish is laid beside its record, its carrier ends what runs, host by host.

Owns the wish and the waiting for what becomes of it. Ending scripts is the carrier's; where a run has
none, this process becomes it for as long as that takes.
"""

from __future__ import annotations

from ctrl_exec.common.clock import monotonic
from ctrl_exec.common.errors import UnknownRunError
from ctrl_exec.common.value import value
from ctrl_exec.operations.carrier import Pause
from ctrl_exec.operations.status import recover_one, visible_head

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ctrl_exec.dispatcher import Dispatcher
    from ctrl_exec.services.authority import Caller
    from ctrl_exec.services.records import RunRecord
    from ctrl_exec.services.transport import Interrupt

# an agent gives a script 5 s to end by itself; the carrier sees the wish within 1
PATIENCE_S = 15.0
_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 0.5
_LAST_WORDS_S = 5.0  # from an agent's word that a script has ended to the result


@value
class HostEnd:
    """Whether what the run had started on a host has ended.

    `state` is the host's in the run; `error` says why it has not: `agent too old to cancel`, the agent
    could not be reached, or `not known yet` when the time was over.
    """

    host: str
    ended: bool
    state: str
    error: str = ""

    def as_json(self) -> dict[str, Any]:
        """`{host, ended, state}`, and `error` if any."""
        shown: dict[str, Any] = {"host": self.host, "ended": self.ended, "state": self.state}
        return shown | {"error": self.error} if self.error else shown


@value
class CancelReport:
    """What became of a cancel: one entry for each host of the run, in the order asked.

    `complete` says that the run is over, whether by this or before it; a cancel that crosses the end of
    the scripts is no error. `has_ended` says that nothing of it runs any more.
    """

    reqid: str
    state: str
    complete: bool
    hosts: tuple[HostEnd, ...]

    @property
    def has_ended(self) -> bool:
        """Whether it ended everywhere."""
        return all(each.ended for each in self.hosts)

    def as_json(self) -> dict[str, Any]:
        """`{ok, reqid, state, complete, hosts: [{host, ended, state, error?}]}`."""
        return {
            "ok": True,
            "reqid": self.reqid,
            "state": self.state,
            "complete": self.complete,
            "hosts": [each.as_json() for each in self.hosts],
        }


def cancel(
    dispatcher: Dispatcher,
    caller: Caller,
    reqid: str,
    *,
    interrupt: Interrupt | None = None,
    within_s: float = PATIENCE_S,
) -> CancelReport:
    """End the run on every host and begin it on no further one; tells host by host whether it ended.

    Waits until all agents have said so, for at most `within_s`; the carrier goes on with it in any case.

    Raises: InvalidNameError; DeniedError; UnknownRunError (also for who may not see it); StorageError.
    """
    head = visible_head(dispatcher, caller, reqid, "cancel")
    results = dispatcher.results
    if not head.complete:
        results.ask_to_cancel(reqid)
        dispatcher.log.info("cancel", reqid=reqid, script=head.script, user=caller.username, via=caller.via)
    pause, pause_s = Pause(interrupt), _FIRST_PAUSE_S
    deadline, waits = monotonic() + within_s, True
    while True:
        recovered = None if head.complete else recover_one(dispatcher, reqid)
        record = recovered or results.load(reqid)
        if record is None:
            raise UnknownRunError(reqid)
        if _is_told(record):
            deadline = min(deadline, monotonic() + _LAST_WORDS_S)
            waits = _is_about_to_end(record)
        if record.complete or not waits or monotonic() >= deadline or pause(pause_s):
            break
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
    if record.complete:
        results.forget_cancel(reqid)  # it may have ended between the look and the wish
    return _report(record)


def _is_told(record: RunRecord) -> bool:
    known = {each.host for each in record.cancels}
    return all(host in known for host in record.pending)


def _is_about_to_end(record: RunRecord) -> bool:
    """Whether all that is missing is the results of scripts that have ended."""
    has_ended = {each.host: each.ended for each in record.cancels}
    return all(has_ended.get(host) for host in record.pending)


def _report(record: RunRecord) -> CancelReport:
    told = {each.host: each for each in record.cancels}
    hosts = []
    for result in record.results:
        outcome = told.get(result.host)
        if result.is_final and result.state != "lost":
            hosts.append(HostEnd(result.host, True, result.state))
        elif outcome is None:
            hosts.append(HostEnd(result.host, False, result.state, result.error or "not known yet"))
        else:
            hosts.append(HostEnd(result.host, outcome.ended, result.state, outcome.error))
    return CancelReport(record.reqid, record.state, record.complete, tuple(hosts))
