"""`ctrl-exec-local`: executes the task layer's local commands as a user of their own.

Owns who may ask and whom commands run as. Each connection gets a keeper, a process of its own, which
outlives a restart of this one. Reads no configuration: it can read neither `etc_dir` nor `state_dir`.

Everything is imported here: where root starts it from a checkout, the user it becomes may not read that.
"""

from __future__ import annotations

import fcntl  # noqa: F401 - `process` wants it where a program is started
import os
import pwd
import select
import signal
import sys

import ctrl_exec
from ctrl_exec.common.descendants import DUMPABLE, find_prctl
from ctrl_exec.common.errors import ConfigError, CtrlExecError, ServiceError, UsageError
from ctrl_exec.common.listeners import Listeners, inherited, listen_unix
from ctrl_exec.common.log import Log
from ctrl_exec.common.process import (
    account_of,
    drop_privileges,
    fork_child,
    seal_descriptors,
    use_default_sigchld,
)
from ctrl_exec.common.service_notify import ServiceNotify
from ctrl_exec.common.suppression import suppress
from ctrl_exec.common.value import value
from ctrl_exec.local.channel import Channel
from ctrl_exec.local.keeper import Keeper
from ctrl_exec.local.messages import LocalAccount

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping, Sequence

PROGRAM = "ctrl-exec-local"
USAGE = f"usage: {PROGRAM} [--socket FILE] [--as USER] [--for USER] [--version] [--help]\n"
EXIT_USAGE = 2
EXIT_CONFIG = 78
SERVICE_USER = "ctrl-exec"
SOCKET_MODE = 0o600
BACKLOG = 256
_LONGEST_SLEEP_S = 60.0
_OPTIONS = ("--socket", "--as", "--for")


@value
class Options:
    """What the command line says: where to listen, whom to become, whom to serve."""

    socket: str = ""
    run_as: str = ""
    serve: str = SERVICE_USER


def main(words: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT."""
    use_default_sigchld()
    seal_descriptors()
    try:
        options, answer = read_words(list(sys.argv[1:] if words is None else words))
    except UsageError as error:
        sys.stderr.write(f"{PROGRAM}: {error}\n{USAGE}")
        return EXIT_USAGE
    if answer:
        sys.stdout.write(answer)
        return 0
    try:
        service = open_service(options, dict(os.environ))
    except CtrlExecError as error:
        sys.stderr.write(f"{PROGRAM}: {error}\n")
        return EXIT_CONFIG if isinstance(error, ConfigError) else 1
    return service.run()


def read_words(words: list[str]) -> tuple[Options, str]:
    """The options, and what to print instead of running. Raises: UsageError."""
    found = dict.fromkeys(_OPTIONS, "")
    while words:
        word = words.pop(0)
        if word == "--version":
            return Options(), f"{PROGRAM} {ctrl_exec.__version__}\n"
        if word in ("--help", "-h"):
            return Options(), USAGE
        name, equals, text = word.partition("=")
        if name not in found or not (equals or words):
            raise UsageError(f"{word!r} is not understood")
        found[name] = text if equals else words.pop(0)
    socket, run_as, serve = (found[name] for name in _OPTIONS)
    return Options(socket, run_as, serve or SERVICE_USER), ""


def open_service(options: Options, environment: Mapping[str, str]) -> Service:
    """Listen, then become who commands run as. Raises: ConfigError, ServiceError."""
    served = account_of(options.serve, "")[0]
    if os.geteuid() == 0 and not options.run_as:
        raise ConfigError("started as root: --as USER must say whom commands run as")
    listeners = Listeners(inherited(environment))
    if not listeners.sockets:
        if not options.socket:
            raise ConfigError("systemd has handed over no socket: --socket FILE must say where to listen")
        owner = served if os.geteuid() == 0 else -1
        listeners.sockets.append(listen_unix(options.socket, BACKLOG, SOCKET_MODE, owner=owner))
        listeners.note_name(options.socket)
    try:
        drop_privileges(options.run_as)
        account = own_account()
        if options.run_as and account_of(options.run_as, "")[0] != account.uid:
            raise ConfigError(f"--as {options.run_as}: only root can become another user")
    except BaseException:
        listeners.retire()
        raise
    # of this user's processes those that hold everybody's secrets are closed to the others
    find_prctl(DUMPABLE)(0)
    return Service(listeners, account, frozenset((0, served)), environment)


def own_account() -> LocalAccount:
    """Who we are. Raises: ConfigError if that is nobody the system knows."""
    try:
        entry = pwd.getpwuid(os.geteuid())
    except KeyError as error:
        raise ConfigError(f"there is no user {os.geteuid()} on this machine") from error
    return LocalAccount(entry.pw_name, entry.pw_uid, entry.pw_dir, entry.pw_shell)


class Service:
    """The loop: takes connections, gives each a keeper, reaps keepers."""

    def __init__(
        self,
        listeners: Listeners,
        account: LocalAccount,
        allowed: frozenset[int],
        environment: Mapping[str, str],
    ) -> None:
        self._listeners = listeners
        self._account = account
        self._allowed = allowed
        self._log = Log(PROGRAM, "stderr")
        self._notify = ServiceNotify(environment)
        self._is_stopping = False

    def run(self) -> int:
        """Serve until told to stop; keepers and their commands go on. Gives the exit code."""
        reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note_stop)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        addresses = self._listeners.addresses()
        self._log.info(
            "local-start", version=ctrl_exec.__version__, user=self._account.name, socket=addresses
        )
        self._notify.ready()
        by_fd = self._listeners.by_fd()
        while not self._is_stopping:
            for fd in self._sleep([reading, *by_fd]):
                if fd in by_fd:
                    self._take(by_fd[fd])
            with suppress(BlockingIOError):
                os.read(reading, 4096)
            self._reap()
        self._notify.stopping()
        self._listeners.retire()
        self._log.info("local-stop")
        return 0

    def _note_stop(self, _number: int, _frame: object) -> None:
        self._is_stopping = True

    def _sleep(self, fds: list[int]) -> list[int]:
        poller = select.poll()
        for fd in fds:
            poller.register(fd, select.POLLIN)
        wait_s = _LONGEST_SLEEP_S
        if self._notify.watchdog_s is not None:
            self._notify.watchdog()
            wait_s = min(wait_s, self._notify.watchdog_s)
        return [fd for fd, _ in poller.poll(int(wait_s * 1000) + 1)]

    def _take(self, listener: socket.socket) -> None:
        """Take one connection and have a keeper for it."""
        try:
            stream, _ = listener.accept()
        except OSError as error:  # gone already, or no descriptor for it
            self._log.warning("local-refused", error=error.strerror or str(error))
            return
        channel = Channel(stream)
        try:
            uid = channel.peer_uid()
            if uid not in self._allowed:
                self._log.warning("local-refused", error=f"user {uid} may not have commands executed")
                return
            fork_child(lambda: self._keep(channel))
        except OSError as error:
            self._log.error("local-refused", error=f"no keeper for it ({error.strerror or error})")
            with suppress(ServiceError):
                channel.send({"failure": f"ctrl-exec-local cannot fork ({error.strerror or error})"})
        finally:
            channel.close()

    def _keep(self, channel: Channel) -> int:
        """The keeper, from beginning to end; Ctrl-C at the service is not meant for it."""
        os.setsid()
        self._listeners.close()
        Keeper(channel, self._account, self._log).serve()
        return 0

    def _reap(self) -> None:
        with suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    return
                if status:
                    code = os.waitstatus_to_exitcode(status)
                    self._log.error("local-keeper", pid=pid, error=f"ended with {code}")


if __name__ == "__main__":
    sys.exit(main())
