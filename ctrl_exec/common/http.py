"""The forking server: a parent that accepts, limits and forks, and never waits for a client.

Owns the processes: who gets a child, who must wait, who is turned away, and what happens at
signals. TLS handshake, parsing and all work are the child's, under deadlines. The parent has no
threads and starts no programs. API, agent and pairing port all serve through it.

    accept ──► admit? ──► has it sent something? ──no──► waiting room (until it has, or head_s)
                                   │yes
                                   ▼
                         room for a child? ──no──► 503, at once
                                   │yes
                                   ▼
                     fork ──► child.serve_connection ──► os._exit
"""

from __future__ import annotations

import errno
import gc
import math
import os
import select
import signal
import socket
import time

from ctrl_exec.common.answer import encode_whole
from ctrl_exec.common.child import EXIT_CRASH, Child, ChildLimits, ServerPipes, serve_connection
from ctrl_exec.common.children import Children
from ctrl_exec.common.connection import Connection, plain_address
from ctrl_exec.common.conversation import Exchange, Parts, Timing
from ctrl_exec.common.errors import CtrlExecError
from ctrl_exec.common.forking import BaseServer, ForkingMixIn
from ctrl_exec.common.listeners import open_listeners
from ctrl_exec.common.names import new_reqid
from ctrl_exec.common.parser import ParserLimits
from ctrl_exec.common.process import use_default_sigchld
from ctrl_exec.common.rehearsal import rehearse
from ctrl_exec.common.second import this_second
from ctrl_exec.common.server_settings import ServerHooks, ServerSettings, Understudy
from ctrl_exec.common.service_notify import ServiceNotify
from ctrl_exec.common.slots import Slots
from ctrl_exec.common.suppression import suppress
from ctrl_exec.common.waiting_room import WaitingRoom

__all__ = ["Child", "Exchange", "ForkingServer", "ParserLimits", "ServerHooks", "ServerSettings", "Timing"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any, NoReturn

    from ctrl_exec.common.log import Log
    from ctrl_exec.common.routing import Request, Response
    from ctrl_exec.common.server_settings import Application
    from ctrl_exec.common.tls import Context

_ACCEPTS_AT_THE_END = 1024
_EVENTS_A_TURN = 64
_WAKEUP_BYTES = 512
# plain numbers: each look at an enum is a page of memory for the parent of a fresh child
_MSG_PEEK = int(socket.MSG_PEEK)
_SIGCHLD, _SIGHUP, _SIGTERM, _SIGINT, _SIGUSR1 = _HANDLED = (
    int(signal.SIGCHLD), int(signal.SIGHUP), int(signal.SIGTERM), int(signal.SIGINT), int(signal.SIGUSR1),
)  # fmt: skip
_LEAVING_LIMIT = 256
_LEAVING_S = 1.0
_PAUSE_S = 0.05
_EVICTION_CHECK_S = 0.25
_REFUSALS_LOGGED_S = 1.0
_SLOT_CAPACITY = 2048
_ENDING_LIMIT = 128
"""Children that are done or being ended do not count as such, but no more than these are let pile up."""
_HOUSEKEEPING_S = 60.0
_OUT_OF_DESCRIPTORS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class ForkingServer(ForkingMixIn, BaseServer):
    """Accepts on all listeners, forks a child a connection, until SIGTERM or SIGINT.

    `application(request, child)` runs in the child and gives the response. `tls()` gives the
    context, at start and at each reload. `environment` is the program's own (systemd speaks by it).
    """

    def __init__(
        self,
        settings: ServerSettings,
        application: Application,
        *,
        tls: Callable[[], Context | None] | None = None,
        log: Log,
        hooks: ServerHooks | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._settings = settings
        self._application = application
        self._tls = tls
        self._log = log
        self._hooks = hooks or ServerHooks()
        self._context = tls() if tls is not None else None
        # contexts that were replaced stay referenced (CPython CVE-2026-19445)
        self._old_contexts: list[Context | None] = []
        self._environment = dict(environment or {})
        self._notify = ServiceNotify(self._environment)
        self._listeners = open_listeners(
            settings.addresses, settings.unix_socket, settings.unix_group, settings.backlog, self._environment
        )
        self._by_fd = self._listeners.by_fd()
        self._slots = Slots(
            max(_SLOT_CAPACITY, settings.max_children * 2 + _ENDING_LIMIT), settings.counter_count
        )
        self._children = Children(self._slots)
        self._epoll = select.epoll()
        self._silent = WaitingRoom(self._epoll, settings.max_waiting, settings.timing.head_s)
        self._leaving = WaitingRoom(self._epoll, _LEAVING_LIMIT, _LEAVING_S)
        self._wakeup = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._retire = os.pipe2(os.O_CLOEXEC)
        self._drain = os.pipe2(os.O_CLOEXEC)
        self._serving: Child | None = None
        """In a child: itself."""
        self._stop_deadline: float | None = None
        self._paused_until: float | None = None
        self._refused: dict[str, int] = {}
        self._refused_logged_at = 0.0
        self._watchdog_at = math.inf if self._notify.watchdog_s is None else 0.0
        self._housekeeping_at = 0.0
        self._parent_fds: tuple[int, ...] = ()
        self._note_for_children()

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where it listens: `127.0.0.1:7445`, or the path of a Unix socket."""
        return self._listeners.addresses()

    # -- the loop -------------------------------------------------------------------------------------

    def serve(self) -> None:
        """Serve until SIGTERM or SIGINT, then drain; gives when the last child is gone or let go."""
        self._prepare()
        self._hooks.on_ready(self.addresses)
        self._notify.ready()
        while self._stop_deadline is None:
            self._turn()
        while self._children and time.monotonic() < self._stop_deadline:
            self._turn()
        os.close(self._drain[1])  # every child sees it: answer with what there is
        deadline = time.monotonic() + self._settings.drain_grace_s
        while self._children and time.monotonic() < deadline:
            self._turn(deadline)
        self._children.kill_waiting()

    def _prepare(self) -> None:
        use_default_sigchld()
        rehearse(self._hooks.understudy(), self._settings.counter_count, self._rehearse)
        for number in _HANDLED:
            signal.signal(number, self._signalled)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        signal.set_wakeup_fd(self._wakeup[1], warn_on_full_buffer=False)
        self._epoll.register(self._wakeup[0], select.EPOLLIN)
        for fd in self._by_fd:
            self._epoll.register(fd, select.EPOLLIN)
        # what the children share must not be written to by a collector: that would copy the pages
        gc.collect()
        gc.freeze()
        gc.disable()

    def _signalled(self, number: int, _frame: object) -> None:
        """Nothing in the parent, which its wakeup descriptor tells; a child, which has no such, heeds it.

        So one handler does for both, and no child has to install its own.
        """
        if self._serving is not None:
            self._serving.heed(number)

    def _turn(self, until: float | None = None) -> None:
        """Wait for something to happen, and have it happen."""
        due = self._due(until)
        for fd, _ in self._epoll.poll(max(0.0, due - time.monotonic()), _EVENTS_A_TURN):
            if fd in self._silent:
                guest = self._silent.take(fd)
                self._look_at(guest.socket, guest.address)
            elif fd in self._leaving:
                self._leaving.drain(fd)
            elif fd == self._wakeup[0]:
                self._heed_signals(os.read(fd, _WAKEUP_BYTES))
            else:
                self._accept(fd, 1)  # epoll tells of the next one cheaper than an exception tells of none
        now = time.monotonic()
        if now >= due:
            self._keep_time(now)
        if len(self._children) > self._half:
            self._children.evict_beyond(self._half)

    def _due(self, until: float | None) -> float:
        """When there is something to do though nothing happens. Most turns have no guest, and no refusal."""
        due = min(self._housekeeping_at, self._watchdog_at)
        for room in (self._silent, self._leaving):
            if room.guests:
                due = min(due, room.next_deadline() or due)
        if self._refused:
            due = min(due, self._refused_logged_at + _REFUSALS_LOGGED_S)
        if len(self._children) > self._half:
            due = min(due, time.monotonic() + _EVICTION_CHECK_S)
        for other in (self._paused_until, self._stop_deadline if until is None else until):
            if other is not None and other < due:
                due = other
        return due

    def _keep_time(self, now: float) -> None:
        for address in self._silent.expire(now):
            self._hooks.on_silent_end(plain_address(address)[0])
        self._leaving.expire(now)
        if self._paused_until is not None and self._paused_until <= now:
            self._paused_until = None
            self._watch_listeners(select.EPOLLIN)
        if self._notify.watchdog_s is not None and self._watchdog_at <= now:
            self._watchdog_at = now + self._notify.watchdog_s
            self._notify.watchdog()
        self._log_refusals(now)
        if self._housekeeping_at <= now:
            self._housekeeping_at = now + _HOUSEKEEPING_S
            gc.collect()  # the collector is off; what little is not frozen is looked at now and then

    # -- signals --------------------------------------------------------------------------------------

    def _heed_signals(self, seen: bytes) -> None:
        """Heed what the wakeup descriptor told: a byte for each signal, its number."""
        if _SIGCHLD in seen:
            self._reap()
        if _SIGTERM in seen or _SIGINT in seen:
            self._stop()
        elif _SIGHUP in seen and self._stop_deadline is None:
            self._reload()

    def _stop(self) -> None:
        """Stop accepting; a second time, stop waiting too."""
        now = time.monotonic()
        if self._stop_deadline is not None:
            self._stop_deadline = now
            return
        self._notify.stopping()
        for fd in self._by_fd:
            if self._paused_until is None:
                self._accept(fd, _ACCEPTS_AT_THE_END)
        self._stop_deadline = now + self._settings.drain_s
        self._paused_until = None
        self._watch_listeners(0)
        self._by_fd = {}
        self._listeners.retire()
        self._silent.clear()
        os.close(self._retire[1])
        self._parent_fds = (self._epoll.fileno(), *self._wakeup, self._drain[1], *self._hooks.parent_fds())

    def _reload(self) -> None:
        self._notify.reloading()
        try:
            if self._hooks.on_reload is not None:
                application, settings = self._hooks.on_reload()
            else:
                application, settings = self._application, self._settings
            context = self._tls() if self._tls is not None else None
        except (CtrlExecError, OSError, ValueError) as error:
            self._log.error("reload", error=str(error), outcome="the old configuration is kept")
        else:
            self._old_contexts = [*self._old_contexts[-3:], self._context]
            self._application, self._settings, self._context = application, settings, context
            self._retire_children()
            self._log.info("reload", outcome="ok")
        self._notify.ready()

    def _retire_children(self) -> None:
        """Tell the children that live now to keep no connection any longer."""
        os.close(self._retire[1])
        os.close(self._retire[0])
        self._retire = os.pipe2(os.O_CLOEXEC)
        self._note_for_children()

    def _note_for_children(self) -> None:
        """Make once what each child needs: what a child makes itself is memory copied each time."""
        settings = self._settings
        self._half = max(1, settings.max_children // 2)
        """How many children may wait for the rest of a request."""
        kept = settings.max_children * settings.keepalive_share_percent // 100
        self._child_limits = ChildLimits(settings.max_long, kept)
        self._pipes = ServerPipes(self._retire[0], self._drain[0])
        self._child = Child(
            self._slots, self._child_limits, self._pipes, self._children.indexes, self._hooks.meanwhile
        )
        self._parts = self._make_parts(self._application, self._hooks.note)
        self._parent_fds = (
            *self._by_fd,
            self._epoll.fileno(), *self._wakeup, self._drain[1], self._retire[1],
            *self._hooks.parent_fds(),
        )  # fmt: skip

    def _reap(self) -> None:
        for remote_ip, status in self._children.reap(self._hooks.on_sigchld):
            self._hooks.on_child_exit(remote_ip, status)

    # -- arrivals -------------------------------------------------------------------------------------

    def _accept(self, fd: int, most: int) -> None:
        listener = self._by_fd.get(fd)
        if listener is None:
            return
        for _ in range(most):
            try:
                sock, address = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _OUT_OF_DESCRIPTORS and not self._silent.drop_oldest():
                    self._pause(error)
                    return
                continue
            self._arrived(sock, address)

    def _pause(self, error: OSError) -> None:
        """Leave the queue to the kernel for a moment: there is nothing to accept with."""
        self._log.error(f"{self._settings.log_prefix}overload", error=str(error.strerror))
        self._paused_until = time.monotonic() + _PAUSE_S
        self._watch_listeners(0)

    def _watch_listeners(self, events: int) -> None:
        for fd in self._by_fd:
            self._epoll.modify(fd, events)

    def _arrived(self, sock: socket.socket, address: object) -> None:
        if not self._hooks.admit(plain_address(address)[0]):
            sock.close()
            return
        self._look_at(sock, address)

    def _look_at(self, sock: socket.socket, address: object) -> None:
        """See whether it says something, waits, or has left without a word, which costs no child."""
        try:
            seen = sock.recv(1, _MSG_PEEK)
        except BlockingIOError:
            self._silent.add(sock, address)
            return
        except OSError:
            seen = b""
        if seen:
            self._spoke(sock, address)
            return
        sock.close()
        self._hooks.on_silent_end(plain_address(address)[0])

    def _spoke(self, sock: socket.socket, address: object) -> None:
        """The socket is readable: give it a child, turn it away, or see it off."""
        remote_ip = plain_address(address)[0]
        reason = self._why_no_room(remote_ip)
        if reason:
            self._turn_away(sock, address, reason)
        else:
            self.process_request(sock, address)

    def _why_no_room(self, remote_ip: str) -> str:
        settings = self._settings
        limit = settings.max_per_ip
        if limit and self._children.of_address(remote_ip) >= limit and not _is_local(remote_ip):
            return "too many connections from this address"
        half, children = self._half, self._children
        if len(children) >= settings.max_children + _ENDING_LIMIT:
            return "too many processes are still ending"
        if len(children) < half:
            return ""
        if children.counted() >= half:
            children.evict_beyond(half - 1)
        if children.counted() >= settings.max_children and not children.evict_one():
            return "all children are busy"
        return ""

    def _turn_away(self, sock: socket.socket, address: object, reason: str) -> None:
        """Answer 503 without a child; over TLS one of few children that do nothing else does it."""
        self._refused[reason] = self._refused.get(reason, 0) + 1
        if not self._is_tls(address):
            self._say_no_room(sock, address, reason)
        elif self._children.refuser_count() < max(4, self._settings.max_children // 8):
            refuse: Application = lambda *_: self._hooks.refuse(503, reason)  # noqa: E731
            self._fork(sock, address, self._make_parts(refuse, self._hooks.note))
        else:
            sock.close()

    def _is_tls(self, address: object) -> bool:
        return self._context is not None and isinstance(address, tuple)

    def _say_no_room(self, sock: socket.socket, address: object, reason: str) -> None:
        """Answer 503 from here, without waiting, and see the client off."""
        answer = encode_whole(self._hooks.refuse(503, reason), new_reqid())
        try:
            sock.recv(65536)  # an unread request would turn the close into a reset
            sock.send(answer)
            sock.shutdown(socket.SHUT_WR)
        except OSError:
            sock.close()
        else:
            self._leaving.add(sock, address)

    def _log_refusals(self, now: float) -> None:
        """At most one line a second and reason, however many were turned away."""
        if self._refused and now - self._refused_logged_at >= _REFUSALS_LOGGED_S:
            for reason, count in self._refused.items():
                self._log.warning(f"{self._settings.log_prefix}overload", reason=reason, count=count)
            self._refused = {}
            self._refused_logged_at = now

    # -- children -------------------------------------------------------------------------------------

    def process_request(self, request: Any, client_address: Any) -> None:
        """Fork a child for the connection; unlike the base class, without waiting for any."""
        self._fork(request, client_address, None)

    def _fork(self, sock: socket.socket, address: object, instead: Parts | None) -> None:
        index = self._slots.claim()
        if index is None:
            sock.close()
            return
        this_second()
        try:
            pid = os.fork()
        except OSError as error:
            self._slots.release(index)
            reason = f"cannot fork: {error.strerror}"
            self._refused[reason] = self._refused.get(reason, 0) + 1
            if self._is_tls(address):
                sock.close()
            else:
                self._say_no_room(sock, address, "no room for a process")
            return
        if pid == 0:
            self._be_child(sock, address, index, instead or self._parts)
        sock.close()
        self._children.add(pid, index, plain_address(address)[0], is_refuser=instead is not None)

    def _be_child(self, sock: socket.socket, address: object, index: int, parts: Parts) -> NoReturn:
        status = EXIT_CRASH
        try:
            child = self._serving = self._child
            connection = Connection(sock, address)
            child.begin(index, connection)
            self._let_go()
            context = None if connection.is_unix else self._context
            serve_connection(child, connection, context, parts, self._hooks.on_tls_failure)
            status = child.exit_status
        except BaseException as error:  # noqa: BLE001 - the border of a process
            with suppress(Exception):
                self._log.error("crash", error=f"{type(error).__name__}: {error}")
        finally:
            os._exit(status)  # nothing is buffered: standard error goes out by the line

    def _rehearse(self, slots: Slots, sock: socket.socket, address: object, understudy: Understudy) -> None:
        """Do in this process, short of forking, what a child does."""
        child = Child(slots, self._child_limits, self._pipes, self._children.indexes)
        parts = self._make_parts(understudy.application, understudy.note)
        connection = Connection(sock, address)
        child.begin(0, connection)
        serve_connection(child, connection, None, parts, self._hooks.on_tls_failure)

    def _let_go(self) -> None:
        """Close what belongs to the parent, so that a connection ends when its own child ends."""
        for fd in self._parent_fds:
            os.close(fd)
        for room in (self._silent, self._leaving):
            if room.guests:
                room.let_go()

    def _make_parts(self, application: Application, note: Callable[[Child, Exchange], None]) -> Parts:
        settings = self._settings
        return Parts(application, self._hooks.refuse, note, self._crashed, settings.limits, settings.timing)

    def _crashed(self, request: Request, error: Exception) -> Response:
        """The answer where the application has none: an error that nobody foresaw."""
        self._log.error("crash", reqid=request.reqid, error=_describe(error))
        return self._hooks.refuse(500, "an error of ours; it is in the log under this request's id")


def _is_local(remote_ip: str) -> bool:
    return remote_ip.startswith("127.") or remote_ip == "::1"


def _describe(error: Exception) -> str:
    """Class, text and place of an error, for the log."""
    import traceback

    last = traceback.extract_tb(error.__traceback__)[-1:]
    where = f" at {os.path.basename(last[0].filename)}:{last[0].lineno}" if last else ""
    return f"{type(error).__name__}: {error}{where}"
