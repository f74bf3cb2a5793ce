"""What became of a run: asked by a caller, or looked after when its carrier is gone.

Owns the rule that a record is never left to a dead carrier: whoever asks, and the scheduler each
minute, takes it over, asks the agents, and completes it or says `interrupted` with what is known.
"""

from __future__ import annotations

import os

from ctrl_exec.common.errors import CtrlExecError, ProgramError, StorageError, UnknownRunError
from ctrl_exec.common.names import REQID, check_reqid
from ctrl_exec.common.process import detach
from ctrl_exec.common.suppression import suppress
from ctrl_exec.common.value import value
from ctrl_exec.operations.carrier import Carrier
from ctrl_exec.operations.report import RunReport, report_of
from ctrl_exec.services.authority import Submitter
from ctrl_exec.services.targets import Target

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from ctrl_exec.dispatcher import Dispatcher
    from ctrl_exec.services.authority import Caller
    from ctrl_exec.services.journal import RunJournal
    from ctrl_exec.services.record_heads import RunHead
    from ctrl_exec.services.records import RunRecord

__all__ = ["Recovery", "RunReport", "purge", "recover", "status", "sweep", "unfinished"]

# long enough for large outputs over a slow line; hosts that are away cost only the connect timeout
RECOVERY_PATIENCE_S = 120.0
# so long a run that somebody watches is carried on; who still watches then has it carried on again
ATTENTION_S = 60.0


@value
class Recovery:
    """What a round of recovery came to: runs completed, still unfinished, or in other hands."""

    completed: int = 0
    unfinished: int = 0
    carried: int = 0


def status(dispatcher: Dispatcher, caller: Caller, reqid: str) -> RunReport:
    """The run as it stands; one without a carrier is taken over first.

    The hook is asked with the stored submitter. A run that the caller may not see is unknown to it.

    Raises: InvalidNameError; DeniedError; UnknownRunError; StorageError.
    """
    head = visible_head(dispatcher, caller, reqid, "status")
    taken = None if head.complete else recover_one(dispatcher, reqid)
    record = taken or dispatcher.results.load(reqid)
    if record is None:
        raise UnknownRunError(reqid)
    return report_of(record)


def visible_head(dispatcher: Dispatcher, caller: Caller, reqid: str, action: str) -> RunHead:
    """What the run is, for a caller who may do that to it; to all others it is unknown.

    Raises: InvalidNameError; DeniedError; UnknownRunError; StorageError.
    """
    check_reqid(reqid)
    head = dispatcher.results.head(reqid)
    submitter = Submitter(head.submitter, head.submitter_ip) if head else Submitter()
    may_see = dispatcher.authority.sees(
        caller, action, reqid=reqid, script=head.script if head else "", submitter=submitter
    )
    if not may_see:
        raise UnknownRunError(reqid)
    if head is None:
        if dispatcher.results.load(reqid) is not None:  # raises for a record that is damaged
            raise StorageError("is no run record", path=reqid)
        raise UnknownRunError(reqid)
    return head


def recover_one(dispatcher: Dispatcher, reqid: str) -> RunRecord | None:
    """Look after a run whose carrier is gone, while somebody waits; None if it needs no looking after.

    Raises: StorageError.
    """
    if dispatcher.results.is_carried(reqid):
        return None
    return _take_over(dispatcher, reqid, dispatcher.config.discovery_timeout)


def unfinished(dispatcher: Dispatcher) -> tuple[RunReport, ...]:
    """All runs that are not complete, oldest first. Raises: StorageError."""
    found = [record for record in _load_unfinished(dispatcher) if not record.complete]
    return tuple(report_of(record) for record in sorted(found, key=lambda each: (each.created, each.reqid)))


def _load_unfinished(dispatcher: Dispatcher) -> Iterator[RunRecord]:
    for reqid in dispatcher.results.unfinished():
        try:
            record = dispatcher.results.load(reqid)
        except StorageError as error:
            dispatcher.log.error("run", reqid=reqid, error=str(error))
            continue
        if record is not None:
            yield record


def recover(dispatcher: Dispatcher) -> Recovery:
    """Take over every unfinished run that has no carrier, once round. Raises: StorageError."""
    completed = left = carried = 0
    for reqid in dispatcher.results.unfinished():
        try:
            record = _take_over(dispatcher, reqid, RECOVERY_PATIENCE_S)
        except StorageError as error:
            dispatcher.log.error("run", reqid=reqid, error=str(error))
            left += 1
            continue
        if record is None:
            carried += 1
        elif record.complete:
            completed += 1
        else:
            left += 1
    return Recovery(completed, left, carried)


def _take_over(dispatcher: Dispatcher, reqid: str, patience_s: float) -> RunRecord | None:
    """Become its carrier for one round of questions; None if it has a carrier or needs none."""
    journal = dispatcher.results.adopt(reqid)
    if journal is None:
        return None
    carrier = Carrier(dispatcher, journal, _targets(dispatcher, journal))
    was_stopped = _was_stopped(journal)
    try:
        carrier.settle(patience_s)
        carrier.close_overdue()
        if not carrier.is_finished:
            return journal.write("interrupted")
        return carrier.finish(_end_of(journal, was_stopped=was_stopped), wants_output=True)
    finally:
        carrier.close()


def _was_stopped(journal: RunJournal) -> bool:
    """Whether the carrier died before the last batch."""
    return journal.record.begun < len(journal.record.batches)


def _end_of(journal: RunJournal, *, was_stopped: bool) -> str:
    """The state in which a run that was taken over ends; none: what the hosts say."""
    was_stopped |= any(result.state == "lost" for result in journal.record.results)
    # a cancel that was wished for is one
    return "interrupted" if was_stopped and not journal.is_cancelled else ""


def revive(dispatcher: Dispatcher, reqid: str, *, keeps_stderr: bool) -> None:
    """Have a process of its own carry on with a run whose carrier is gone; nobody waits for it.

    It listens to the agents live, for a minute or to the run's end. Where no process can be made the run
    is looked after here. Raises: StorageError.
    """
    dispatcher.log.close()  # as in `detach_carrier`
    keep_stderr = keeps_stderr and dispatcher.config.log_target == "stderr"
    try:
        detach(lambda: _attend(dispatcher, reqid), close=_open_fds() - {0, 1, 2}, keep_stderr=keep_stderr)
    except ProgramError:
        recover_one(dispatcher, reqid)


def _open_fds() -> set[int]:
    with suppress(OSError):
        return {int(name) for name in os.listdir("/proc/self/fd")}
    return set()


def _attend(dispatcher: Dispatcher, reqid: str) -> None:
    """Be the carrier of a run that has none, for some time."""
    try:
        journal = dispatcher.results.adopt(reqid)
        if journal is None:
            return
        carrier = Carrier(dispatcher, journal, _targets(dispatcher, journal))
        was_stopped = _was_stopped(journal)
        try:
            journal.mark("running")
            carrier.attend(ATTENTION_S)
            carrier.close_overdue()
            if carrier.is_finished:
                carrier.finish(_end_of(journal, was_stopped=was_stopped))
            else:
                journal.mark("interrupted")
        finally:
            carrier.close()
    except CtrlExecError as error:
        dispatcher.log.error("run", reqid=reqid, error=str(error))


def _targets(dispatcher: Dispatcher, journal: RunJournal) -> tuple[Target, ...]:
    """The pending hosts that are still registered, on the ports they were reached at."""
    ports = dict(journal.record.ports)
    found = []
    for name in journal.pending:
        record = dispatcher.registry.find(name)
        if record is not None:
            found.append(Target(name, ports.get(name, record.port), record))
    return tuple(found)


def purge(dispatcher: Dispatcher) -> int:
    """Remove the records and idempotency keys whose time is over; gives how many records.

    Raises: StorageError.
    """
    results, keys = dispatcher.results, dispatcher.idempotency_keys
    # a key whose claimant died must know that it began something before the record of that is gone
    # (other keys stand for executions of tasks)
    keys.settle_all(lambda known: bool(REQID.fullmatch(known)) and results.head(known) is not None)
    count = results.purge(dispatcher.clock())
    dispatcher.log.info("purge", runs=count, keys=keys.purge())
    return count


def sweep(dispatcher: Dispatcher) -> int:
    """Put right what crashes left among the records; gives how many things. Raises: StorageError."""
    count = dispatcher.results.sweep()
    dispatcher.log.info("purge", repaired=count)
    return count
