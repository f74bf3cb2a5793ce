"""What the commands of the task layer share: its database, who works at the prompt, names and times.

Owns that the auth hook is asked here as it is over HTTP; without one the permissions of files guard.
"""

from __future__ import annotations

from contextlib import contextmanager

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import TypeVar

    from ctrl_exec.cli.arguments import Arguments
    from ctrl_exec.cli.context import Context
    from ctrl_exec.cli.output import Output
    from ctrl_exec.tasks.identity import Identity
    from ctrl_exec.tasks.store import Store

    T = TypeVar("T")


class TaskContext:
    """One command's view of the task layer."""

    def __init__(self, context: Context, store: Store, identity: Identity) -> None:
        self.context = context
        self.store = store
        self.identity = identity
        self._names: dict[str, str] = {}

    @property
    def output(self) -> Output:
        """Where the command answers."""
        return self.context.output

    def all_pages(self, read: Callable[[str], Sequence[T]], key: str) -> list[T]:
        """Every item of a list that is read page by page, each after the id of the last."""
        found: list[T] = []
        page = read("")
        while page:
            found += page
            page = read(getattr(page[-1], key))
        return found

    def name_of(self, user_id: str) -> str:
        """A user's name; the id of one who is gone."""
        if user_id not in self._names:
            row = self.store.row("SELECT name FROM users WHERE user_id = ?", (user_id,))
            self._names[user_id] = user_id if row is None else row["name"]
        return self._names[user_id]

    def time_of(self, at_ns: int | None) -> str:
        """A moment as people read it, in UTC."""
        from datetime import UTC, datetime

        from ctrl_exec.common.clock import iso_z

        return "-" if at_ns is None else iso_z(datetime.fromtimestamp(at_ns // 10**9, UTC))


@contextmanager
def open_tasks(context: Context, arguments: Arguments) -> Iterator[TaskContext]:
    """The task layer for one command.

    Raises:
        DeniedError: the auth hook refuses.
    """
    from ctrl_exec.tasks.identity import local_identity
    from ctrl_exec.tasks.opening import open_store

    caller = context.caller(arguments)
    context.dispatcher.authority.check(caller, "task")
    with open_store(context.config) as store:
        yield TaskContext(context, store, local_identity(store, caller.username))
