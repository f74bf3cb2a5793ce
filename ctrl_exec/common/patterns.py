"""Regular expressions that cost nothing until they are needed."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import re


class Pattern:
    """A regular expression that is compiled, and `re` imported, when it is first needed.

    A compiler in Python makes them: ten of them cost a command 3 ms, and few commands meet what they match.
    """

    __slots__ = ("_compiled", "_text")

    def __init__(self, text: str) -> None:
        self._text = text
        self._compiled: re.Pattern[str] | None = None
        _made.append(self)

    def fullmatch(self, text: str) -> re.Match[str] | None:
        """The match of the whole text, in ASCII, or None."""
        return self.compiled().fullmatch(text)

    def compiled(self) -> re.Pattern[str]:
        """The expression itself."""
        if self._compiled is None:
            import re

            self._compiled = re.compile(self._text, re.ASCII)
        return self._compiled


_made: list[Pattern] = []


def compile_all() -> None:
    """Compile what there is, in a daemon before it forks: else each child would do it anew."""
    for each in _made:
        each.compiled()
