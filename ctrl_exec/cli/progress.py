"""A live line on the terminal while hosts are being waited for, and the keys that end the waiting.

Owns the bar and what Ctrl-C means to a command that waits: the first press lets go, the second
leaves at once. Must not know what is being waited for.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # typeshed knows `signal` only
import os
import time

from ctrl_exec.common.suppression import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType

    from ctrl_exec.cli.output import Output
    from ctrl_exec.services.transport import Interrupt

BAR_WIDTH = 24
REDRAW_S = 0.2
ERASE = "\r\x1b[K"


class Progress:
    """The line `[####----]  12/50  10 ok, 2 failed  3s` on stderr, redrawn until it is closed.

    Drawn with `os.write` because the timer's handler may run in the middle of any other write.
    """

    def __init__(self, output: Output, total: int) -> None:
        self._output = output
        self._total = total
        self._counts: dict[str, int] = {}
        self._started = time.monotonic()
        self._is_live = output.is_live and total > 1
        self._before: object = None

    def __enter__(self) -> Progress:
        if self._is_live:
            self._before = _signal.signal(_signal.SIGALRM, self._tick)
            _signal.setitimer(_signal.ITIMER_REAL, REDRAW_S, REDRAW_S)
            self.draw()
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_live:
            _signal.setitimer(_signal.ITIMER_REAL, 0)
            _signal.signal(_signal.SIGALRM, _signal.SIG_DFL)
            self.erase()

    def count(self, state: str) -> None:
        """Note that one more host has come to an end in this state."""
        self._counts[state] = self._counts.get(state, 0) + 1
        self.draw()

    def draw(self) -> None:
        """Show the line as it is now."""
        if self._is_live:
            # a line that wraps could not be erased
            self._write(ERASE + self.text(time.monotonic() - self._started)[: self._columns() - 1])

    def erase(self) -> None:
        """Take the line away, so that other text can be printed."""
        if self._is_live:
            self._write(ERASE)

    def text(self, elapsed_s: float) -> str:
        """Give the line for the counts so far."""
        done = sum(self._counts.values())
        filled = BAR_WIDTH * done // max(1, self._total)
        bar = "#" * filled + "-" * (BAR_WIDTH - filled)
        states = ", ".join(f"{number} {state}" for state, number in self._counts.items())
        return f"[{bar}]  {done}/{self._total}  {states or 'waiting'}  {elapsed_s:.0f}s"

    def _columns(self) -> int:
        try:
            return os.get_terminal_size(self._output.stderr.fileno()).columns or 80
        except (OSError, ValueError):
            return 80

    def _tick(self, _number: int, _frame: FrameType | None) -> None:
        self.draw()

    def _write(self, text: str) -> None:
        with suppress(OSError, ValueError):
            os.write(self._output.stderr.fileno(), text.encode())


class Release:
    """Turns Ctrl-C, SIGTERM and a lost terminal into "stop waiting", and the next into leaving.

    While it is held, the first signal makes `interrupt` fire; a second one ends the process with
    `exit_code` after saying `farewell`.
    """

    def __init__(self, exit_code: int, farewell: str) -> None:
        self._exit_code = exit_code
        self._farewell = farewell
        self._reader, self._writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._before: dict[int, object] = {}
        self.is_pressed = False

    def __enter__(self) -> Release:
        for number in (_signal.SIGINT, _signal.SIGTERM, _signal.SIGHUP):
            # under nohup SIGHUP is ignored, in a background job SIGINT: so they stay
            if _signal.getsignal(number) is not _signal.SIG_IGN:
                self._before[number] = _signal.signal(number, self._press)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            _signal.signal(number, handler)
        os.close(self._reader)
        os.close(self._writer)

    @property
    def interrupt(self) -> Interrupt:
        """What an operation watches while it waits."""
        from ctrl_exec.services.transport import Interrupt

        return Interrupt(fds=(self._reader,), is_set=lambda: self.is_pressed)

    def fileno(self) -> int:
        """A descriptor that is readable once a signal has come."""
        return self._reader

    def _press(self, _number: int, _frame: FrameType | None) -> None:
        if self.is_pressed:
            with suppress(OSError):
                os.write(2, f"\n{self._farewell}\n".encode())
            os._exit(self._exit_code)
        self.is_pressed = True
        with suppress(OSError):
            os.write(self._writer, b"!")
