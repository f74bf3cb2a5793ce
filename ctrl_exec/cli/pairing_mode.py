"""The life of pairing mode: this process is the signer, its child the listener on the network.

Owns starting and ending both, the lock that keeps pairing mode single, and the questions on a
terminal. The signer reads `ca.key` and listens to nothing; the listener is a program of its own that
becomes the service user and inherits no descriptor but its standard three.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
from contextlib import suppress

from ctrl_exec.common import clock, files
from ctrl_exec.common.errors import CtrlExecError, ServiceError
from ctrl_exec.common.process import detach, spawn, wait_status
from ctrl_exec.operations.ownership import owners_of, private_directory
from ctrl_exec.operations.pairing import Signer, signer_dir

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ctrl_exec.cli.context import Context
    from ctrl_exec.cli.pairing_dialogue import Dialogue
    from ctrl_exec.config import Config

TURN_S = 0.25
START_S = 30.0
STOP_S = 15.0
_LOCK = "pairing-mode.lock"
# all the listener gets of our environment: it is on the network, and root's secrets are none of its
_PASSED_VARIABLES = ("PATH", "LANG", "LC_ALL", "TZ", "HOME", "LD_LIBRARY_PATH", "COVERAGE_PROCESS_START")


class Listener:
    """The child on the network, as its parent sees it."""

    def __init__(self, config_path: str, environment: dict[str, str], *, is_silent: bool) -> None:
        ours, self._lifeline = os.pipe2(os.O_CLOEXEC)
        reading, theirs = os.pipe2(os.O_CLOEXEC)
        stderr = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC) if is_silent else 2
        # -P: a directory someone else may write must not provide our modules
        argv = [sys.executable, "-P", "-m", "ctrl_exec.pairing.main", config_path]
        try:
            self.pid = spawn(argv, environment=environment, stdin=ours, stdout=theirs, stderr=stderr)
        finally:
            for fd in (ours, theirs, *((stderr,) if is_silent else ())):
                os.close(fd)
        self.process_fd = os.pidfd_open(self.pid)
        try:
            self.addresses = _read_report(reading)
        finally:
            os.close(reading)

    def has_ended(self) -> bool:
        """Whether it is gone."""
        return bool(select.select([self.process_fd], [], [], 0)[0])

    def reload(self) -> None:
        """Have it take up a new certificate."""
        signal.pidfd_send_signal(self.process_fd, signal.SIGHUP)

    def stop(self) -> None:
        """End it and wait."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.process_fd, signal.SIGTERM)
        if not select.select([self.process_fd], [], [], STOP_S)[0]:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.process_fd, signal.SIGKILL)
        wait_status(self.pid, timeout_s=STOP_S)
        os.close(self._lifeline)


def _read_report(fd: int) -> list[str]:
    """Where the listener listens. Raises: ServiceError with its reason when it does not."""
    deadline = clock.monotonic() + START_S
    line = b""
    while not line.endswith(b"\n"):
        left_s = deadline - clock.monotonic()
        if left_s <= 0 or not select.select([fd], [], [], left_s)[0]:
            raise ServiceError("the pairing listener did not start in time")
        chunk = os.read(fd, 65536)
        if not chunk:
            raise ServiceError("the pairing listener ended before it listened")
        line += chunk
    try:
        found = json.loads(line)
    except ValueError as error:
        raise ServiceError("the pairing listener said something unexpected") from error
    if "error" in found:
        raise ServiceError(f"the pairing listener: {found['error']}")
    return [str(each) for each in found.get("addresses", ())]


def start(context: Context, timeout_s: float | None, *, in_background: bool) -> int:
    """Run pairing mode here, or in the background. Raises: ServiceError when one runs already."""
    config = context.config
    signer = Signer(config, context.log)
    lock = _take_lock(config)
    files.make_dirs(config.pairing_dir, 0o2770, owner=owners_of(config).service)
    path = os.path.realpath(context.config_path)
    # on a terminal its log lines would stand in the middle of a question
    is_silent = in_background or (context.output.stderr.isatty() and not context.is_verbose)
    listener = Listener(path, _environment(context), is_silent=is_silent)
    mode = PairingMode(
        context, signer, listener, None if timeout_s is None else clock.monotonic() + timeout_s
    )
    if not in_background:
        _note_pid(lock, os.getpid())
        _announce(context, listener, is_asking=mode.is_asking)
        code = mode.run()
        context.output.answer({"ok": True, "addresses": listener.addresses}, lambda: None)
        return code
    mode.is_asking = False
    pid = detach(lambda: _run_detached(mode, lock))
    document = {"ok": True, "pid": pid, "addresses": listener.addresses}
    shown = ", ".join(listener.addresses)
    context.output.answer(
        document, lambda: context.output.line(f"pairing mode listens on {shown} (pid {pid})")
    )
    return 0


def _run_detached(mode: PairingMode, lock: int) -> int:
    _note_pid(lock, os.getpid())
    return mode.run()


def _announce(context: Context, listener: Listener, *, is_asking: bool) -> None:
    shown = ", ".join(listener.addresses)
    how = "requests are shown here" if is_asking else "decide with list-requests, approve and deny"
    context.output.message(f"pairing mode listens on {shown}; {how}; Ctrl-C ends it")


def _environment(context: Context) -> dict[str, str]:
    import ctrl_exec

    root = os.path.dirname(os.path.dirname(os.path.abspath(ctrl_exec.__file__)))
    inherited = context.environment.get("PYTHONPATH", "")
    passed = {name: context.environment[name] for name in _PASSED_VARIABLES if name in context.environment}
    return passed | {"PYTHONPATH": f"{root}:{inherited}" if inherited else root}


def _lock_path(config: Config) -> str:
    return os.path.join(signer_dir(config), _LOCK)


def _take_lock(config: Config) -> int:
    private_directory(signer_dir(config))
    fd = files.open_lock(_lock_path(config), 0o600)
    if not files.try_lock(fd):
        os.close(fd)
        raise ServiceError("pairing mode is running already; `ctrl-exec pairing-mode stop` ends it")
    return fd


def _note_pid(lock: int, pid: int) -> None:
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{pid}\n".encode(), 0)


def stop(context: Context) -> int:
    """End the pairing mode that runs, wherever it was started."""
    path = _lock_path(context.config)
    pid = _running_pid(path)
    if pid:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        deadline = clock.monotonic() + STOP_S
        while _running_pid(path) == pid:
            if clock.monotonic() > deadline:
                raise ServiceError(f"pairing mode (pid {pid}) does not end; see its log")
            select.select([], [], [], 0.05)
    words = f"pairing mode (pid {pid}) has ended" if pid else "pairing mode was not running"
    context.output.answer({"ok": True, "stopped": bool(pid)}, lambda: context.output.line(words))
    return 0


def _running_pid(path: str) -> int:
    """The pid of the running pairing mode, 0 when none is: the lock says so, not the number."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return 0
    try:
        if files.try_lock(fd):
            return 0
        text = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
        return int(text) if text.isdigit() else 0
    finally:
        os.close(fd)


class PairingMode:
    """The signer's loop: what needs no person, the questions, and the listener's well-being."""

    def __init__(self, context: Context, signer: Signer, listener: Listener, deadline: float | None) -> None:
        self._context = context
        self._signer = signer
        self._listener = listener
        self._deadline = deadline
        self._is_stopped = False
        self._identity: tuple[int, int] | None = self._identity_mark()
        self.is_asking = context.stdin.isatty() and not context.output.is_json

    def run(self) -> int:
        """Work until a signal, the deadline, or the listener's end. Raises: ServiceError for the last."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._remember)
        dialogue = self._dialogue()
        try:
            while not self._is_stopped:
                if self._listener.has_ended():
                    raise ServiceError("the pairing listener has ended; its log says why")
                if self._deadline is not None and clock.monotonic() > self._deadline:
                    break
                self._turn()
                if dialogue is not None:
                    dialogue.turn(self._signer)
                self._wait(dialogue is not None)
        finally:
            self._listener.stop()
        return 0

    def _dialogue(self) -> Dialogue | None:
        if not self.is_asking:
            return None
        from ctrl_exec.cli.pairing_dialogue import Dialogue

        return Dialogue(self._context)

    def _remember(self, _number: int, _frame: object) -> None:
        self._is_stopped = True

    def _turn(self) -> None:
        try:
            self._signer.turn()
            mark = self._identity_mark()
            if mark != self._identity:
                self._identity = mark
                self._listener.reload()
        except CtrlExecError as error:  # a full disk passes; the next turn tries again
            self._context.log.error("pair-reject", reason=str(error))

    def _identity_mark(self) -> tuple[int, int] | None:
        try:
            about = os.stat(self._context.config.cert_path)
        except OSError:
            return None
        return about.st_ino, about.st_mtime_ns

    def _wait(self, is_asking: bool) -> None:
        watched = [self._listener.process_fd]
        if is_asking:
            watched.append(self._context.stdin.fileno())
        select.select(watched, [], [], TURN_S)
