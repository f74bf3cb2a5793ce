"""What the commands of the task layer share: its database, who works at the prompt, names and times.

Owns that the auth hook is asked here as it is over HTTP; without one the permissions of files guard.
"""

from __future__ import annotations

from contextlib import contextmanager

from ctrl_exec.common.errors import ConflictError, NotFoundError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any, TypeVar

    from ctrl_exec.cli.arguments import Arguments
    from ctrl_exec.cli.context import Context
    from ctrl_exec.cli.output import Output
    from ctrl_exec.tasks.people.identity import Identity
    from ctrl_exec.tasks.sealing import Sealer
    from ctrl_exec.tasks.store import Store

    T = TypeVar("T")

_DOCUMENT_LIMIT = 1 << 20


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

    @property
    def sealer(self) -> Sealer:
        """What seals and opens secrets."""
        from ctrl_exec.tasks.sealing import Sealer

        return Sealer(self.context.config.secrets_key_path)

    def all_pages(self, read: Callable[[str], Sequence[T]], key: str | Callable[[T], str]) -> list[T]:
        """Every item of a list that is read page by page, each after the id of the last."""
        found: list[T] = []
        page = read("")
        while page:
            found += page
            page = read(getattr(page[-1], key) if isinstance(key, str) else key(page[-1]))
        return found

    def show(self, document: dict[str, Any]) -> int:
        """Answer with an object as the API gives it: indented for people, with `ok` for programs."""
        import json

        text = json.dumps(document, ensure_ascii=False, indent=2)
        self.output.answer({"ok": True, **document}, lambda: self.output.line(text))
        return 0

    def say(self, document: dict[str, Any], words: str) -> int:
        """Answer with one line, or as a document."""
        self.output.answer({"ok": True, **document}, lambda: self.output.line(words))
        return 0

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


def read_document(tasks: TaskContext, path: str) -> dict[str, Any]:
    """Read one JSON object from a file, or with `-` from standard input.

    Raises:
        UsageError: it cannot be read.
        MessageError: it is no JSON object.
    """
    from ctrl_exec.common.messages import parse_object

    try:
        if path == "-":
            text = tasks.context.stdin.read(_DOCUMENT_LIMIT)
        else:
            with open(path, encoding="utf-8") as stream:
                text = stream.read(_DOCUMENT_LIMIT)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 text") from error
    return parse_object(text.encode("utf-8"))


def read_secret(tasks: TaskContext, path: str | None, prompt: str) -> str:
    """A secret from a file, typed without an echo on a terminal, or the first line of standard input.

    Raises:
        UsageError: the file cannot be read.
    """
    if path is not None:
        return tasks.context.first_line(path, prompt)
    if not tasks.context.stdin.isatty():
        return tasks.context.first_line("-", "standard input")
    from getpass import getpass

    return getpass(f"{prompt}: ", tasks.output.stderr)


def only_one(found: Sequence[T], what: str, word: str) -> T:
    """Give what a word names.

    Raises:
        NotFoundError: nothing.
        ConflictError: one in each of several projects.
    """
    if not found:
        raise NotFoundError(f"no {what} {word!r}; `ctrl-exec {what} list` shows them")
    if len(found) > 1:
        raise ConflictError(f"several projects have a {what} {word!r}: add --project, or name it by its id")
    return found[0]


@contextmanager
def open_tasks(context: Context, arguments: Arguments) -> Iterator[TaskContext]:
    """The task layer for one command.

    Raises:
        DeniedError: the auth hook refuses.
    """
    from ctrl_exec.tasks.opening import open_store
    from ctrl_exec.tasks.people.identity import local_identity

    caller = context.caller(arguments)
    context.dispatcher.authority.check(caller, "task")
    with open_store(context.config) as store:
        yield TaskContext(context, store, local_identity(store, caller.username))
