"""The keeper of one connection: executes what is asked there, watches it, ends it, and says how it ended.

Owns everything of one command on the side of the service, in a process of its own: its orphans come to
it, and whoever hangs up ends it. Must not know who listens, nor what a task is.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import time

import ctrl_exec
from ctrl_exec.common.clock import monotonic
from ctrl_exec.common.descendants import Ending, living, of_session, send_signal, started_at
from ctrl_exec.common.errors import CtrlExecError, MessageError, ServiceError
from ctrl_exec.common.suppression import suppress
from ctrl_exec.local.command import Command
from ctrl_exec.local.messages import (
    ABOUT,
    END_GROUP,
    RUN,
    LocalAccount,
    end_message,
    read_process,
    read_run,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ctrl_exec.common.log import Log
    from ctrl_exec.local.channel import Channel
    from ctrl_exec.local.order import CommandEnd

UMASK = 0o022
_ASK_S = 30.0
_GO_S = 60.0  # the other side waits for its database meanwhile
_OTHER_KEEPER_S = 15.0  # longer than one needs from TERM over KILL to giving up
_LOOK_EVERY_S = 0.05


class Keeper:
    """What is done on one connection, once."""

    def __init__(self, channel: Channel, account: LocalAccount, log: Log) -> None:
        self._channel = channel
        self._account = account
        self._log = log
        self._told = -1  # readable once somebody told this process to end
        self._mark: socket.socket | None = None

    def serve(self) -> None:
        """Answer the one request of this connection."""
        self._told, telling = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(telling, warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, lambda _number, _frame: None)
        os.chdir("/")
        os.umask(UMASK)
        try:
            self._channel.send(self._answer(self._channel.receive(_ASK_S)))
        except CtrlExecError as error:
            self._log.warning("local-refused", error=str(error))
            with suppress(ServiceError):
                self._channel.send({"failure": str(error)})
        finally:
            self._channel.close()
            if self._mark is not None:
                self._mark.close()

    def _answer(self, message: dict[str, Any]) -> dict[str, Any]:
        asked = message.get("ask")
        if asked == RUN:
            return end_message(self._run(message))
        if asked == END_GROUP:
            pid, started = read_process(message)
            is_gone = end_left_group(pid, started)
            self._log.info("local-end-group", pid=pid, gone=is_gone)
            return {"gone": is_gone}
        if asked == ABOUT:
            return {"user": self._account.name, "version": ctrl_exec.__version__}
        raise MessageError("expected to be asked for something that this version does")

    def _run(self, message: dict[str, Any]) -> CommandEnd:
        self._check_user(message.get("user"))
        order = read_run(message, self._account)
        command = Command(order, is_alone=True)
        try:
            command.start(lambda pid: self._hold(command, pid))
            end = self._watch(command)
        finally:
            command.close()
        # argv may hold what its task's form hides; its program does not
        facts = {"program": order.argv[0], "exit": end.exit_code, "signal": end.signal or None}
        self._log.info("local-end", timed_out=end.timed_out, ended=end.was_ended, gone=end.is_gone, **facts)
        return end

    def _check_user(self, user: object) -> None:
        """Raises: MessageError if it is to be executed as another than we are."""
        import pwd

        try:
            uid = pwd.getpwnam(str(user)).pw_uid
        except KeyError:
            uid = -1
        if uid != self._account.uid:
            words = f"local_user is {str(user)[:80]!a}, but ctrl-exec-local runs as {self._account.name!a}"
            raise MessageError(f"{words}: User= in its unit must be the same")

    def _hold(self, command: Command, pid: int) -> None:
        """Have its group on record before it is executed. Raises: ServiceError if nobody waits for it."""
        started = started_at(pid)
        self._mark = take_mark(pid, started)
        outputs = command.take_outputs()
        try:
            self._channel.send({"pid": pid, "started": started}, (outputs[1], outputs[2]))
        finally:
            for fd in outputs.values():
                os.close(fd)
        if self._channel.receive(_GO_S).get("go") is not True:
            raise ServiceError("it was not to be executed after all")

    def _watch(self, command: Command) -> CommandEnd:
        """Follow it to its end; it is ended when that is asked for, or nobody listens any more."""
        heeded = {self._channel.fileno(), self._told}
        while not command.is_over():
            poller = select.poll()
            for fd in (*command.fds(), *heeded):
                poller.register(fd, select.POLLIN)
            ready = {fd for fd, _ in poller.poll(int(command.wait_s() * 1000) + 1)}
            if ready & heeded:
                # whatever it says, and also where nobody is left to say anything
                command.end()
                self._log.info("local-ending", told=self._told in ready)
                heeded -= ready
        return command.outcome()


def take_mark(pid: int, started: int) -> socket.socket | None:
    """Show all the machine that this command has a keeper, as long as that lives; None if it is shown.

    The name is an abstract socket's: the kernel takes it back whatever becomes of us. Source: unix(7).
    """
    mark = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        mark.bind(f"\0ctrl-exec-local/{pid}/{started}")
    except OSError as error:
        mark.close()
        if error.errno != errno.EADDRINUSE:
            raise ServiceError(f"cannot note what is executed ({error.strerror})") from error
        return None
    return mark


def end_left_group(pid: int, started: int, *, patience_s: float = _OTHER_KEEPER_S) -> bool:
    """End what a command left whose scheduler has died; whether nothing of it lives.

    Where its keeper lives, that one ends it and knows more of it; it is waited for. Not for ever: what it
    executes can stop it, and anybody on this machine can bind a name.
    """
    mark = _mark_in_time(pid, started, patience_s)
    try:
        if started_at(pid) not in (0, started):
            return True  # its number is somebody else's by now: so is the group's
        # what is older is no child of it: after a reboot numbers begin anew
        ending = Ending(lambda: [each for each in of_session(pid) if each.started >= started])
        while not ending.is_over():
            time.sleep(ending.wait_s())
        return not ending.has_given_up
    finally:
        if mark is not None:
            mark.close()


def _mark_in_time(pid: int, started: int, patience_s: float) -> socket.socket | None:
    """The mark of a command, which its keeper gives up; None if it is still shown when patience ends."""
    deadline = monotonic() + patience_s
    while (mark := take_mark(pid, started)) is None and monotonic() < deadline:
        _let_keeper_go_on(pid, started)
        time.sleep(_LOOK_EVERY_S)
    return mark


def _let_keeper_go_on(pid: int, started: int) -> None:
    """Continue the keeper of a command that stopped it: they are of one user."""
    found = {each.pid: each for each in living(with_dead=True)}
    own = found.get(pid)
    keeper = found.get(own.parent) if own is not None and own.started == started else None
    if keeper is not None:
        send_signal(keeper, signal.SIGCONT)
