"""What the command line shows, and where: results on stdout, words and progress on stderr.

Owns the two shapes of an answer (text for people, one JSON document for programs), tables and
colours. Must not know any command. Text from agents and files is shown through `printable`, so
that no name and no tag can send control sequences to a terminal.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import TextIO

BOLD = "1"
RED = "31"
GREEN = "32"
YELLOW = "33"


class Output:
    """The terminal, pipe or file that a command answers to."""

    def __init__(
        self,
        stdout: TextIO,
        stderr: TextIO,
        *,
        is_json: bool = False,
        is_quiet: bool = False,
        is_colour_allowed: bool = True,
    ) -> None:
        self.stdout = stdout
        self.stderr = stderr
        self.is_json = is_json
        self.is_quiet = is_quiet
        self.is_colour_allowed = is_colour_allowed

    @property
    def is_live(self) -> bool:
        """Whether progress may be drawn: a terminal on stderr, a person, not a program, reading."""
        return self.stderr.isatty() and not self.is_json and not self.is_quiet

    def answer(self, document: Mapping[str, object], show: Callable[[], None]) -> None:
        """Give the command's answer: the document with `--json`, else whatever `show` prints."""
        if self.is_json:
            self.document(document)
        else:
            show()

    def document(self, document: Mapping[str, object]) -> None:
        """Print the one JSON document of this command."""
        import json

        self.stdout.write(json.dumps(document, ensure_ascii=False, default=str) + "\n")

    def line(self, text: str = "") -> None:
        """Print one line of the answer; nothing of it with `--json`."""
        if not self.is_json:
            self.stdout.write(text + "\n")

    def raw(self, text: str) -> None:
        """Print text of the answer as it is, without a line end of ours; nothing with `--json`."""
        if not self.is_json:
            self.stdout.write(text)

    def message(self, text: str) -> None:
        """Tell the user something on stderr; nothing with `--quiet` or `--json`."""
        if not self.is_quiet and not self.is_json:
            self.stderr.write(text + "\n")

    def warning(self, text: str) -> None:
        """Warn the user on stderr, also with `--quiet` and `--json`."""
        self.stderr.write(self.coloured("warning:", YELLOW, self.stderr) + " " + text + "\n")

    def error(self, text: str) -> None:
        """Say on stderr what failed."""
        self.stderr.write(self.coloured("ctrl-exec:", RED, self.stderr) + " " + text + "\n")

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Print a table: a header, a rule, a row each; columns as wide as their widest cell."""
        if self.is_json:
            return
        cells = [[printable(str(cell)) for cell in row] for row in rows]
        widths = [max([len(name), *(len(row[at]) for row in cells)]) for at, name in enumerate(columns)]
        self.line(self.coloured(joined(columns, widths), BOLD, self.stdout))
        self.line("  ".join("-" * width for width in widths))
        for row in cells:
            self.line(joined(row, widths))

    def coloured(self, text: str, colour: str, stream: TextIO | None = None) -> str:
        """Give the text in a colour if `stream` (default: stdout) is a terminal that may have them."""
        if self.is_colour_allowed and (stream or self.stdout).isatty():
            return f"\x1b[{colour}m{text}\x1b[0m"
        return text

    def flush(self) -> None:
        """Bring out what is still buffered."""
        self.stdout.flush()
        self.stderr.flush()


def joined(cells: Sequence[str], widths: Sequence[int]) -> str:
    """Give one row of a table, without blanks at its end."""
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()


def printable(text: str, keep: str = "") -> str:
    """Give the text with every control character but those in `keep` shown as `\\xNN`."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() or each in keep else escaped(each) for each in text)


def escaped(letter: str) -> str:
    """Give one character as `\\n`, `\\x1b` or `\\u202e`."""
    return letter.encode("unicode_escape").decode("ascii")


def plural(count: int, noun: str) -> str:
    """Give `1 host`, `2 hosts`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
