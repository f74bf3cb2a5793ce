"""`suppress` of `contextlib`, without its price.

`contextlib` imports `collections` and `functools`, 3 ms of the start of a command that else needs neither.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType


class suppress:  # noqa: N801 - it stands in for the one of the standard library
    """Go on behind the block when one of these exceptions ends it."""

    __slots__ = ("_kinds",)

    def __init__(self, *kinds: type[BaseException]) -> None:
        self._kinds = kinds

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, _error: BaseException | None, _where: TracebackType | None
    ) -> bool:
        return kind is not None and issubclass(kind, self._kinds)
