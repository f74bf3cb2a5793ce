"""Which runs there were: asked by a caller, and the index behind the answer kept.

Owns who may list what, and that an index that was deleted or fell behind is put right by a process
of its own. What a run came to in full is the affair of `status`.
"""

from __future__ import annotations

import os
from contextlib import suppress

from ctrl_exec.common.clock import monotonic
from ctrl_exec.common.errors import CtrlExecError, ProgramError
from ctrl_exec.common.process import detach
from ctrl_exec.operations.carrier import Pause
from ctrl_exec.services.authority import Submitter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ctrl_exec.dispatcher import Dispatcher
    from ctrl_exec.services.authority import Caller
    from ctrl_exec.services.record_heads import RunHead
    from ctrl_exec.services.run_filter import Key, RunFilter
    from ctrl_exec.services.run_index import RunPage

MAX_LIMIT = 1000
# the scheduler looks at all names so often; without one, whoever lists runs sees to it
LOOK_PERIOD_S = 600
_LOOK_OVERDUE_S = 3600
# so long an answer waits for an index that is being rebuilt: a small one is whole by then
_REBUILD_WAIT_S = 0.5
_CATCH_UP_S = 600.0


def list_runs(
    dispatcher: Dispatcher, caller: Caller, wanted: RunFilter, *, limit: int = 100, after: Key | None = None
) -> RunPage:
    """A page of the runs wanted, newest first, without their output.

    The hook is asked once, with the user that the filter names as submitter; none means all.

    Raises: DeniedError; StorageError; BusyError.
    """
    dispatcher.authority.check(caller, "status", submitter=Submitter(wanted.user))
    index = dispatcher.run_index
    page = index.page(wanted, limit, after)
    if page.is_indexing:
        _start_rebuild(dispatcher)
        wait, deadline = Pause(), monotonic() + _REBUILD_WAIT_S
        while not index.is_current() and monotonic() < deadline:
            wait(0.02)
        page = index.page(wanted, limit, after)
    elif dispatcher.clock() - index.scanned_at() > _LOOK_OVERDUE_S:
        _start_rebuild(dispatcher)
    return page


def _start_rebuild(dispatcher: Dispatcher) -> None:
    """Have a process of its own put the index right, if none is at it; nobody waits for it."""
    dispatcher.log.close()  # its descriptor is closed there, and the next line opens another
    keep_stderr = dispatcher.config.log_target == "stderr"
    try:
        detach(lambda: rebuild(dispatcher), close=_open_fds() - {0, 1, 2}, keep_stderr=keep_stderr)
    except ProgramError as error:
        dispatcher.log.error("run-index", error=str(error))


def _open_fds() -> set[int]:
    with suppress(OSError):
        return {int(name) for name in os.listdir("/proc/self/fd")}
    return set()


def rebuild(dispatcher: Dispatcher) -> None:
    """Look at the names of all records now."""
    try:
        count = dispatcher.run_index.rebuild()
    except CtrlExecError as error:
        dispatcher.log.error("run-index", error=str(error))
        return
    if count:
        dispatcher.log.info("run-index", runs=count)


def keep_index(dispatcher: Dispatcher) -> None:
    """Read up on what changed, and look at all names from time to time. Raises: StorageError; BusyError."""
    index = dispatcher.run_index
    is_current = index.is_current(_CATCH_UP_S)
    if not is_current or dispatcher.clock() - index.scanned_at() >= LOOK_PERIOD_S:
        rebuild(dispatcher)


def head_json(head: RunHead) -> dict[str, Any]:
    """A run as a list shows it; `counts` of its hosts by state once it is complete."""
    shown: dict[str, Any] = {
        "reqid": head.reqid,
        "script": head.script,
        "args": list(head.args),
        "mode": head.mode,
        "state": head.state,
        "complete": head.complete,
        "created": head.created,
        "hosts": list(head.hosts),
    }
    if head.completed is not None:
        shown["completed"] = head.completed
    if head.counts is not None:
        shown["counts"] = head.counts
    return shown
