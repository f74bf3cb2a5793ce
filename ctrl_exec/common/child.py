"""A server's child from its birth to its end: its row in the shared block, its connection, its way out.

Owns what a child is to its application: counters, the share of long requests, signs that the
server drains. Forks nothing; the server does.
"""

from __future__ import annotations

import select
import time

from ctrl_exec.common.answer import encode_whole
from ctrl_exec.common.conversation import Conversation, EvictedError
from ctrl_exec.common.names import new_reqid
from ctrl_exec.common.process import SIGHUP, SIGTERM, SIGUSR1, die_of, leave_wakeups, set_handler
from ctrl_exec.common.slots import IDLE, LEAVING, READING, SENDING, WORKING
from ctrl_exec.common.suppression import suppress
from ctrl_exec.common.value import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ctrl_exec.common.connection import Connection
    from ctrl_exec.common.conversation import Parts
    from ctrl_exec.common.slots import Slots, SlotView
    from ctrl_exec.common.tls import Context

EXIT_DONE = 0
EXIT_CRASH = 70
EXIT_HANDSHAKE = 71
EXIT_EVICTED = 73
"""Exit statuses of a child; an application may set `exit_status` to one below 64."""

WAITING_STATES = frozenset((READING, IDLE, SENDING))
_TLS_HANDSHAKE_RECORD = 0x16
_PLAIN_ANSWER_S = 2.0


@value
class ChildLimits:
    """What a child must know of the server's limits: children in all, how many may be kept alive
    (beyond `keepalive_limit` live ones none is), and how many may be long."""

    max_long: int
    keepalive_limit: int


@value
class ServerPipes:
    """Descriptors that become readable when the server retires its children, and when its drain ends."""

    retire_fd: int
    drain_fd: int


class Child:
    """This process, as its application sees it; its server makes it once, for all children it forks."""

    def __init__(
        self,
        slots: Slots,
        limits: ChildLimits,
        pipes: ServerPipes,
        live_indexes: Callable[[], tuple[int, ...]],
        meanwhile: Callable[[], None] | None = None,
    ) -> None:
        self._slots = slots
        self._index = 0
        self._limits = limits
        self._live_indexes = live_indexes
        self.retire_fd = pipes.retire_fd
        self.drain_fd = pipes.drain_fd
        self.exit_status = EXIT_DONE
        self.has_waited = False
        """Whether the row says that we wait for our client, or did before we went on."""
        # bound here: made in a child they would be memory of its own
        self._heed_wait = self.is_waiting
        self._is_away = self._was_evicted = False
        self._meanwhile = meanwhile
        self._use_meanwhile = None if meanwhile is None else self._work_meanwhile

    def begin(self, index: int, connection: Connection) -> None:
        """Be this process's child, with a row and a connection of its own."""
        self._index = index
        leave_wakeups()
        connection.on_wait = self._heed_wait
        connection.meanwhile = self._use_meanwhile

    def _work_meanwhile(self) -> None:
        """Do what the server has for the time that the peer needs; it waits for its peer all the same."""
        if self._meanwhile is None:
            return
        self.is_waiting(is_sending=False)
        self._is_away = True
        self._meanwhile()
        self._is_away = False
        if self._was_evicted:
            raise EvictedError

    # -- for the conversation -------------------------------------------------------------------

    def is_idle(self) -> None:
        """Between two requests of one connection."""
        self.has_waited = True
        self._slots.set_state(self._index, IDLE)

    def is_working(self) -> None:
        """Not waiting for the client."""
        self.has_waited = False
        self._slots.set_state(self._index, WORKING)

    def is_waiting(self, is_sending: bool) -> None:
        """Waiting for the client; the time of the first such wait counts, not of the last."""
        self.has_waited = True
        state = SENDING if is_sending else READING
        if self._slots.state(self._index) != state:
            self._slots.set_state(self._index, state)

    def is_leaving(self) -> None:
        """Done: the room is free for the next one before the process has ended."""
        self._slots.set_state(self._index, LEAVING)

    def may_keep_alive(self) -> bool:
        """Whether there is room for connections that only might be used again."""
        return self._slots.live_count <= self._limits.keepalive_limit and not self.is_retired()

    # -- for the application ----------------------------------------------------------------------

    def enter_long(self) -> bool:
        """Count this request as a long one; False if there are as many as may be."""
        return self._slots.enter_long(self._index, self._limits.max_long)

    def leave_long(self) -> None:
        """It is no longer one."""
        self._slots.leave_long(self._index)

    def has_room_for_long(self) -> bool:
        """Whether another long request would be let in now."""
        return self._slots.long_count() < self._limits.max_long

    def count(self, counter: int, amount: int = 1) -> None:
        """Add to one of the server's counters."""
        self._slots.add(((counter, amount),))

    def note_answer(self, route: int, status: int, counted: Iterable[tuple[int, int]] = ()) -> None:
        """Show outside what is answered, and add to the counters that count it."""
        self._slots.note_answer(self._index, route, status)
        self._slots.add(counted)

    def totals(self) -> list[int]:
        """The server's counters, of all its children."""
        return self._slots.totals()

    def live(self) -> list[SlotView]:
        """The children alive at our fork, this one included."""
        indexes = (*self._live_indexes(), self._index)
        return [view for view in self._slots.views(indexes) if view.state]

    def long_count(self) -> int:
        """How many requests are long now."""
        return self._slots.long_count()

    def is_retired(self) -> bool:
        """Whether the server was reloaded or is stopping since this child was born."""
        return _is_readable(self.retire_fd)

    def is_drained(self) -> bool:
        """Whether the server's time to end its work is over."""
        return _is_readable(self.drain_fd)

    def watch(self, connection: Connection, *also: int) -> select.epoll:
        """A set that becomes readable when the peer hangs up, the drain is over, or `also` is readable."""
        watched = select.epoll()
        for fd in (connection.hung_up_fd, self.drain_fd, *also):
            watched.register(fd, select.EPOLLIN)
        return watched

    # -- signals ------------------------------------------------------------------------------------

    def heed(self, number: int) -> None:
        """End at SIGUSR1, but only while waiting for the client: work is never cut off; at SIGTERM and
        SIGHUP at once. SIGINT is the parent's to heed, SIGCHLD but interrupts what sleeps."""
        if number == SIGUSR1 and self._slots.state(self._index) in WAITING_STATES:
            set_handler(number, None)
            if not self._is_away:
                raise EvictedError
            self._was_evicted = True  # for when it is back: an exception would go nobody knows where
        if number in (SIGTERM, SIGHUP):
            die_of(number)


def serve_connection(
    child: Child,
    connection: Connection,
    context: Context | None,
    parts: Parts,
    on_tls_failure: Callable[[str, str], None],
) -> None:
    """Carry the connection from handshake to close; sets the child's exit status."""
    may_linger = False
    try:
        if context is None or _secure(child, connection, context, parts, on_tls_failure):
            may_linger = Conversation(connection, child, parts).carry()
        # a client that comes back at once must not find its last child's room still taken
        child.is_leaving()
        connection.finish(linger=may_linger)
    except EvictedError:
        child.exit_status = EXIT_EVICTED
    except OSError:  # the peer is gone or does not take its answer: nothing to tell it
        with suppress(OSError):
            connection.finish()


def _secure(
    child: Child,
    connection: Connection,
    context: Context,
    parts: Parts,
    on_tls_failure: Callable[[str, str], None],
) -> bool:
    """Whether the handshake succeeded."""
    first = connection.first_byte()
    if first is not None and first != _TLS_HANDSHAKE_RECORD:
        child.exit_status = EXIT_HANDSHAKE
        on_tls_failure(connection.remote_ip, "not a TLS handshake")
        plain = parts.refuse(400, "this port speaks TLS only: use https")
        connection.send(encode_whole(plain, new_reqid()), time.monotonic() + _PLAIN_ANSWER_S)
        connection.finish(linger=True)
        return False
    try:
        connection.handshake(context, time.monotonic() + parts.timing.handshake_s)
    except OSError as error:  # SSLError is one
        from ctrl_exec.common.tls import failure_reason

        child.exit_status = EXIT_HANDSHAKE
        on_tls_failure(connection.remote_ip, failure_reason(error))
        return False
    return True


def _is_readable(fd: int) -> bool:
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return bool(poller.poll(0))
