"""What the command line knows of hosts before an operation is asked: how many, and near misses."""

from __future__ import annotations

from ctrl_exec.common.errors import CtrlExecError, InvalidInputError, StorageError, UnknownAgentError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from ctrl_exec.cli.context import Context
    from ctrl_exec.cli.way import Way
    from ctrl_exec.config import Config
    from ctrl_exec.services.registry import Registry


def open_registry(config: Config) -> Registry:
    """Open the registry for reading, without any other part of the dispatcher."""
    from ctrl_exec.services.registry import Registry

    return Registry(config.agents_dir, config.revoked_path, config.contacts_dir)


def expected_hosts(context: Context, patterns: Sequence[str], way: Way) -> tuple[str, ...]:
    """Give the names that the patterns stand for, for progress and order; nothing for bad ones.

    Over the daemon only plain names are known: the registry is not the user's to read.

    The operation resolves them itself, after authorisation, and is the one that refuses. Plain names
    are not looked up: the registry is read once, not twice.
    """
    if not any(letter in pattern for pattern in patterns for letter in "@![:"):
        return tuple(dict.fromkeys(pattern.lower() for pattern in patterns))
    if way.is_daemon:
        return ()
    from ctrl_exec.services.targets import resolve_targets

    try:
        config = context.config
        found = resolve_targets(patterns, open_registry(config), config.max_hosts)
    except (InvalidInputError, StorageError):
        return ()
    return tuple(target.name for target in found.hosts)


class with_suggestions:  # noqa: N801 - a function to its callers; `contextmanager` would cost them 3 ms
    """Add near names of the registry to the error for unknown agents.

    `typed` are the words of `run`, hosts and script, where no `--` followed.

    Raises:
        UnknownAgentError: as inside, its text extended.
    """

    def __init__(self, context: Context, typed: Sequence[str] = ()) -> None:
        self._context = context
        self._typed = typed

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _where: TracebackType | None
    ) -> None:
        if isinstance(error, UnknownAgentError):
            self._extend(error)

    def _extend(self, error: UnknownAgentError) -> None:
        from ctrl_exec.cli.arguments import nearest

        try:
            known = open_registry(self._context.config).names()
        except CtrlExecError:
            return
        slip = missing_dashes(self._typed, error.names)
        near = [name for name in (nearest(each, known) for each in error.names[:5]) if name]
        if not known:
            error.args = (f"{error}: no agent is paired yet; `ctrl-exec pairing-mode` lets them ask",)
        elif slip:
            error.args = (f"{error}: arguments of a script stand after --, as in `{slip}`",)
        elif near:
            error.args = (f"{error} (did you mean {', '.join(dict.fromkeys(near))}?)",)


def missing_dashes(typed: Sequence[str], unknown: Sequence[str]) -> str:
    """Give the command that was meant if a script and its arguments were typed without `--`, else nothing."""
    import shlex

    from ctrl_exec.common.names import SCRIPT

    at = next((place for place, word in enumerate(typed) if word in unknown), 0)
    if not at or at == len(typed) - 1 or not SCRIPT.fullmatch(typed[at]):
        return ""
    return f"ctrl-exec run {shlex.join(typed[: at + 1])} -- {shlex.join(typed[at + 1 :])}"
