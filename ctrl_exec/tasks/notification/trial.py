"""Trying a notifier out: one attempt, made now, outside the queue.

Owns what a test tells. How each kind wants it is `posting`'s.
"""

from __future__ import annotations

from ctrl_exec.tasks.notification.news import Notice
from ctrl_exec.tasks.notification.notifiers import load_notifier
from ctrl_exec.tasks.notification.posting import post, posting_of
from ctrl_exec.tasks.outbound.outgoing import OutgoingError
from ctrl_exec.tasks.ulid import new_ulid

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ctrl_exec.config import Config
    from ctrl_exec.tasks.models import Notifier
    from ctrl_exec.tasks.sealing import Sealer
    from ctrl_exec.tasks.store import Store


def send_test(config: Config, store: Store, sealer: Sealer, notifier: Notifier) -> str | None:
    """Send a test to a notifier; gives what went wrong, None if it was taken.

    Raises: StorageError if its secret does not open; ConfigError.
    """
    found = load_notifier(store, sealer, notifier.notifier_id)
    secret = "" if found is None else found[1]
    now_ns = store.clock_ns()
    facts = {"event": "TEST", "projectId": notifier.project_id, "notifierId": notifier.notifier_id}
    notice = Notice(new_ulid(now_ns), notifier.notifier_id, "TEST", facts, now_ns)
    try:
        post(posting_of(config), notifier, secret, notice, now_s=now_ns // 10**9)
    except OutgoingError as failure:
        return str(failure)
    return None
