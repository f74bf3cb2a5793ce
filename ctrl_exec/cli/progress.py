"""A live table on the terminal while hosts are being waited for, and the keys that end the waiting.

Owns the table and what Ctrl-C means to a command that waits: the first press lets go, the second is for the
command to judge, the next leaves at once. Must not know what is being waited for.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # typeshed knows `signal` only
import os
import time

from ctrl_exec.cli.output import printable
from ctrl_exec.common.suppression import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import FrameType

    from ctrl_exec.cli.output import Output
    from ctrl_exec.services.transport import Interrupt

BAR_WIDTH = 24
REDRAW_S = 0.2
ERASE = "\r\x1b[K"
# rows of hosts under each other at most, and what else is to stay on the screen
MOST_ROWS = 12
_OTHER_ROWS = 4


class Progress:
    """The hosts that are waited for, a row each, and `[####----]  12/50  10 ok, 2 failed  3s` below them.

    On stderr, redrawn until it is closed; drawn with `os.write` because the timer's handler may run in the
    middle of any other write. `on_tick` is called at each redrawing. With one host there is nothing to see.
    """

    def __init__(
        self, output: Output, hosts: Sequence[str], *, on_tick: Callable[[], None] | None = None
    ) -> None:
        self._output = output
        self._total = 0
        self._waiting: dict[str, tuple[str, str]] = {}
        self._counts: dict[str, int] = {}
        self._started = time.monotonic()
        self._is_live = False
        self._is_open = False
        self._drawn = 0
        self._on_tick = on_tick
        self.set_hosts(hosts)

    def set_hosts(self, hosts: Sequence[str]) -> None:
        """Say whom is waited for; possible as long as nobody was counted."""
        self._total = len(hosts)
        self._waiting = dict.fromkeys(hosts, ("pending", ""))
        self._is_live = self._output.is_live and self._total > 1
        if self._is_open:
            self._start()

    def __enter__(self) -> Progress:
        self._is_open = True
        self._start()
        return self

    def _start(self) -> None:
        if self._is_live:
            _signal.signal(_signal.SIGALRM, self._tick)
            _signal.setitimer(_signal.ITIMER_REAL, REDRAW_S, REDRAW_S)
            self.draw()

    def __exit__(self, *_: object) -> None:
        self._is_open = False
        if self._is_live:
            _signal.setitimer(_signal.ITIMER_REAL, 0)
            _signal.signal(_signal.SIGALRM, _signal.SIG_DFL)
            self.erase()

    def count(self, state: str, host: str = "") -> None:
        """Note that one more host has come to an end in this state."""
        self._counts[state] = self._counts.get(state, 0) + 1
        self._waiting.pop(host, None)

    def note(self, host: str, state: str, text: str = "") -> None:
        """Note what a host that is waited for does; the next redrawing shows it."""
        if host in self._waiting:
            self._waiting[host] = (state, text or self._waiting[host][1])

    def draw(self) -> None:
        """Show it as it is now."""
        if not self._is_live:
            return
        columns, rows = self._size()
        elapsed_s = time.monotonic() - self._started
        # a line that wraps could not be erased
        lines = [line[: columns - 1] for line in (*self.rows(rows - _OTHER_ROWS), self.text(elapsed_s))]
        self._write(self._erasure() + "\n".join(ERASE + line for line in lines))
        self._drawn = len(lines)

    def erase(self) -> None:
        """Take it away, so that other text can be printed."""
        if self._is_live and self._drawn:
            self._write(self._erasure())
            self._drawn = 0

    def _erasure(self) -> str:
        return f"\x1b[{self._drawn - 1}A\r\x1b[J" if self._drawn > 1 else ERASE

    def rows(self, most: int) -> list[str]:
        """Give a row for each host that is waited for, as far as they fit."""
        room = max(0, min(most, MOST_ROWS))
        shown = [host for host, _ in zip(self._waiting, range(room), strict=False)]
        width = max(map(len, shown), default=0)
        rows = [
            f"{printable(host).ljust(width)}  {'  '.join(self._waiting[host])}".rstrip() for host in shown
        ]
        if len(self._waiting) > room and rows:
            rows[-1] = f"… and {len(self._waiting) - room + 1} more"
        return rows

    def text(self, elapsed_s: float) -> str:
        """Give the line for the counts so far."""
        done = sum(self._counts.values())
        filled = BAR_WIDTH * done // max(1, self._total)
        bar = "#" * filled + "-" * (BAR_WIDTH - filled)
        states = ", ".join(f"{number} {state}" for state, number in self._counts.items())
        return f"[{bar}]  {done}/{self._total}  {states or 'waiting'}  {elapsed_s:.0f}s"

    def _size(self) -> tuple[int, int]:
        try:
            found = os.get_terminal_size(self._output.stderr.fileno())
        except (OSError, ValueError):
            return 80, 24
        return found.columns or 80, found.lines or 24

    def _tick(self, _number: int, _frame: FrameType | None) -> None:
        if self._on_tick is not None:
            self._on_tick()
        self.draw()

    def _write(self, text: str) -> None:
        with suppress(OSError, ValueError):
            os.write(self._output.stderr.fileno(), text.encode())


class Release:
    """Turns Ctrl-C, SIGTERM and a lost terminal into "stop waiting", and the third into leaving.

    While it is held, the first signal makes `interrupt` fire, and so does the end of `expire_after`. What a
    second one means is its owner's; where that does not ask, and at a third, the process ends with
    `exit_code` after saying `farewell`.
    """

    def __init__(self, exit_code: int, farewell: str, *, presses: int = 1) -> None:
        self._exit_code = exit_code
        self._farewell = farewell
        self._heeded = presses
        self._reader, self._writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._before: dict[int, object] = {}
        self._presses: list[int] = []
        self.has_expired = False

    def __enter__(self) -> Release:
        for number in (_signal.SIGINT, _signal.SIGTERM, _signal.SIGHUP):
            # under nohup SIGHUP is ignored, in a background job SIGINT: so they stay
            if _signal.getsignal(number) is not _signal.SIG_IGN:
                self._before[number] = _signal.signal(number, self._press)
        return self

    def __exit__(self, *_: object) -> None:
        if _signal.SIGALRM in self._before:
            _signal.setitimer(_signal.ITIMER_REAL, 0)
        for number, handler in self._before.items():
            _signal.signal(number, handler)
        os.close(self._reader)
        os.close(self._writer)

    @property
    def is_pressed(self) -> bool:
        """Whether to stop waiting."""
        return bool(self._presses) or self.has_expired

    @property
    def may_press_again(self) -> bool:
        """Whether it was a person who pressed, and another press would reach us."""
        return bool(self._presses) and set(self._presses) == {_signal.SIGINT}

    def expire_after(self, timeout_s: float) -> None:
        """Stop waiting after so long, too."""
        self._before[_signal.SIGALRM] = _signal.signal(_signal.SIGALRM, self._expire)
        # a timer of 0 would never end
        _signal.setitimer(_signal.ITIMER_REAL, max(timeout_s, 1e-6))

    @property
    def interrupt(self) -> Interrupt:
        """What an operation watches while it waits."""
        from ctrl_exec.services.transport import Interrupt

        return Interrupt(fds=(self._reader,), is_set=lambda: self.is_pressed)

    def fileno(self) -> int:
        """A descriptor that is readable once a signal has come."""
        return self._reader

    def wait(self, timeout_s: float) -> bool:
        """Wait for a signal, for at most so long; whether one has come."""
        import select

        poller = select.poll()
        poller.register(self._reader, select.POLLIN)
        return bool(poller.poll(int(timeout_s * 1000)))

    def wait_for_another(self, timeout_s: float) -> bool:
        """Wait for a second press, for at most so long; whether it has come, perhaps before."""
        deadline = time.monotonic() + timeout_s
        while len(self._presses) < 2:
            with suppress(BlockingIOError):
                os.read(self._reader, 4096)
            # between the read and the look a press has left its byte: nothing is missed
            left_s = deadline - time.monotonic()
            if len(self._presses) < 2 and (left_s <= 0 or not self.wait(left_s)):
                return False
        return True

    def expire(self) -> None:
        """Stop waiting now."""
        self.has_expired = True
        self._wake()

    def _expire(self, _number: int, _frame: FrameType | None) -> None:
        self.expire()

    def _press(self, number: int, _frame: FrameType | None) -> None:
        if len(self._presses) >= self._heeded:
            with suppress(OSError):
                os.write(2, f"\n{self._farewell}\n".encode())
            os._exit(self._exit_code)
        self._presses.append(number)
        self._wake()

    def _wake(self) -> None:
        with suppress(OSError):
            os.write(self._writer, b"!")
