"""Ending a run on demand, whichever process carries it, also when that one was killed.

Owns the word left for the carrier and the patience with it. What a script has started is found and
ended by `descendants`. Whose run it is was settled before.
"""

from __future__ import annotations

import os
import signal
import time

from ctrl_exec.common.clock import monotonic
from ctrl_exec.common.descendants import KILL_GRACE_S, TERM_GRACE_S, Ending, of_session
from ctrl_exec.common.errors import StorageError
from ctrl_exec.common.suppression import suppress
from ctrl_exec_agent.spool import DONE, LOST, RUNNING, identity, is_alive

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ctrl_exec_agent.spool import Found, Spool

_LOOK_S = 0.02
_PATIENCE_S = TERM_GRACE_S + KILL_GRACE_S + 1.0


def cancel_run(spool: Spool, owner: str, reqid: str) -> bool | None:
    """Whether the run has ended, now or before; None if there is none.

    Raises: StorageError if its record can't be read, or no word be left for its carrier.
    """
    found = spool.find(owner, reqid, time.time())
    if found is None:
        return None
    if found.status == DONE:
        return found.is_gone
    if found.status != LOST:
        if not found.can_cancel:
            return False
        spool.ask_cancel(owner, reqid)
        _summon(found.carrier)
        found = _wait_for_end(spool, owner, reqid)
    if found is None:
        return False
    if found.status == LOST:
        return _end_orphans(spool.script_of(owner, reqid))
    return found.is_gone


def _summon(carrier: str) -> None:
    """Tell that very process that word was left for it."""
    with suppress(OSError):
        fd = os.pidfd_open(int(carrier.partition("-")[0]))
        try:
            if is_alive(carrier):
                signal.pidfd_send_signal(fd, signal.SIGUSR2)
        finally:
            os.close(fd)


def _wait_for_end(spool: Spool, owner: str, reqid: str) -> Found | None:
    """The record once the run is over, or its carrier was killed; None if it goes on for all we waited."""
    deadline = monotonic() + _PATIENCE_S
    while monotonic() < deadline:
        with suppress(StorageError):
            found = spool.find(owner, reqid, time.time())
            if found is None or found.status != RUNNING:
                return found
        time.sleep(_LOOK_S)
    return None


def _end_orphans(script: str) -> bool:
    """End what is left of a script whose carrier was killed, as far as its session tells."""
    number = script.partition("-")[0]
    if not number.isdigit():  # it was killed within the first moment: nobody knows what it began
        return False
    session = int(number)
    if identity(session) not in ("", script):  # another process has the number: no such session is left
        return True
    ending = Ending(lambda: of_session(session))
    while not ending.is_over():
        time.sleep(ending.wait_s())
    return not ending.has_given_up
