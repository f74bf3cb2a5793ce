"""Sends what waits for one notifier, the oldest first, until there is nothing or it does not go.

Owns what a failed attempt means: all that waits for the receiver waits for a growing pause; what was
tried too often, or refused for good, is given up and said. Runs in a process of its own for each receiver.
"""

from __future__ import annotations

from ctrl_exec.common.clock import monotonic
from ctrl_exec.common.errors import CtrlExecError
from ctrl_exec.tasks.notification import news
from ctrl_exec.tasks.notification.notifiers import load_notifier
from ctrl_exec.tasks.notification.posting import post
from ctrl_exec.tasks.outbound.outgoing import OutgoingError, RefusedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ctrl_exec.common.log import Log
    from ctrl_exec.tasks.models import Notifier
    from ctrl_exec.tasks.notification.news import Notice
    from ctrl_exec.tasks.notification.posting import Posting
    from ctrl_exec.tasks.sealing import Sealer
    from ctrl_exec.tasks.store import Store

ROUND_S = 30.0
"""After so long the next round goes on."""


def send_waiting(store: Store, sealer: Sealer, posting: Posting, notifier_id: str, log: Log) -> int:
    """Send what is due; gives how many were sent. Raises: StorageError."""
    found = None
    try:
        found = load_notifier(store, sealer, notifier_id)
    except CtrlExecError as error:
        log.error("task-news", notifier=notifier_id, error=str(error))
        news.postpone(store, notifier_id, news.MOST_ATTEMPTS)
        return 0
    if found is None or not found[0].is_enabled:
        news.drop_all(store, notifier_id)
        return 0
    sent, deadline = 0, monotonic() + ROUND_S
    while monotonic() < deadline:
        notice = news.take_next(store, notifier_id)
        if notice is None:
            break
        was_sent = _send_one(store, posting, found, notice, log)
        if was_sent is False:
            break
        sent += was_sent or 0
    return sent


def _send_one(
    store: Store, posting: Posting, to: tuple[Notifier, str], notice: Notice, log: Log
) -> bool | None:
    """Whether it was sent; None where it is refused for good, and the next one's turn has come."""
    notifier, secret = to
    facts = {"notifier": notifier.notifier_id, "event": notice.event, "attempt": notice.attempts}
    try:
        post(posting, notifier, secret, notice, now_s=store.clock_ns() // 10**9)
    except RefusedError as error:
        news.drop(store, notice.notice_id)
        log.error("task-news", error=f"given up: {error}", **facts)
        return None
    except OutgoingError as error:
        log.warning("task-news", error=str(error), **facts)
    except Exception as error:  # noqa: BLE001 - what a receiver may do to us must not stop the queue
        log.error("task-news", error=type(error).__name__, **facts)
    else:
        news.drop(store, notice.notice_id)
        log.info("task-news", **facts)
        return True
    if notice.attempts >= news.MOST_ATTEMPTS:
        news.drop(store, notice.notice_id)
        log.error("task-news", error="given up", **facts)
    news.postpone(store, notifier.notifier_id, notice.attempts)
    return False
