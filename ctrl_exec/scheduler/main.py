"""`ctrl-exec-scheduler`: the clock. Sleeps until something is due and has a child of its own do it.

Owns when purge, the nightly sweep and recovery happen, and nothing of what they do. Signal handlers
only set a flag; the loop acts. Whatever happens in a child, the loop goes on.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from contextlib import suppress

import ctrl_exec
from ctrl_exec.common import files
from ctrl_exec.common.clock import monotonic
from ctrl_exec.common.errors import ConfigError, CtrlExecError, StorageError, UsageError
from ctrl_exec.common.log import Log
from ctrl_exec.common.process import (
    drop_privileges,
    end_group,
    fork_child,
    seal_descriptors,
    use_default_sigchld,
    wait_status,
)
from ctrl_exec.common.service_notify import ServiceNotify
from ctrl_exec.config import load_config
from ctrl_exec.dispatcher import open_dispatcher
from ctrl_exec.scheduler.executions import Executions
from ctrl_exec.scheduler.task_clock import TaskClock
from ctrl_exec.scheduler.timetable import Duty, Timetable, cron, every
from ctrl_exec.tasks.clock.zones import local_zone
from ctrl_exec.tasks.opening import open_store, wake_directory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import tzinfo

    from ctrl_exec.config import Config
    from ctrl_exec.dispatcher import Dispatcher

PROGRAM = "ctrl-exec-scheduler"
USAGE = f"usage: {PROGRAM} [--config FILE] [--version] [--help]\n"
EXIT_USAGE = 2
EXIT_CONFIG = 78
RECOVERY_PERIOD_S = 60.0
INDEX_PERIOD_S = 60.0
LONG_PERIOD_S = 60.0
SWEEP_CRON = "43 3 * * *"  # nightly, away from the full hour at which everybody's cron runs
LONGEST_SLEEP_S = 60.0  # bounds what a clock that jumps can do to us
LONGEST_WORK_S = 1800.0
PUBLISH_PERIOD_S = 5.0  # a write that lasts, each time: too much for every start
FAREWELL_S = 5.0
_METRICS_MODE = 0o640


def main(words: Sequence[str] | None = None) -> int:
    """Run until SIGTERM or SIGINT; SIGHUP re-reads the configuration."""
    use_default_sigchld()
    seal_descriptors()
    given = list(sys.argv[1:] if words is None else words)
    try:
        path, answer = _read_words(given)
    except UsageError as error:
        sys.stderr.write(f"{PROGRAM}: {error}\n{USAGE}")
        return EXIT_USAGE
    if answer:
        sys.stdout.write(answer)
        return 0
    try:
        config = load_config(path or os.environ.get("CTRL_EXEC_CONFIG") or None)
        drop_privileges(config.service_user, config.service_group)
        scheduler = Scheduler(config, path, dict(os.environ))
    except CtrlExecError as error:
        sys.stderr.write(f"{PROGRAM}: {error}\n")
        return EXIT_CONFIG if isinstance(error, ConfigError) else 1
    return scheduler.run()


def _read_words(words: list[str]) -> tuple[str, str]:
    """The path of the configuration, and what to print instead of running. Raises: UsageError."""
    path = ""
    while words:
        word = words.pop(0)
        if word == "--version":
            return path, f"{PROGRAM} {ctrl_exec.__version__}\n"
        if word in ("--help", "-h"):
            return path, USAGE
        name, equals, text = word.partition("=")
        if name != "--config" or not (equals or words):
            raise UsageError(f"{word!r} is not understood")
        path = text if equals else words.pop(0)
    return path, ""


class Scheduler:
    """The loop and its children."""

    def __init__(self, config: Config, path: str, environment: Mapping[str, str]) -> None:
        self._path = path
        self._environment = environment
        self._notify = ServiceNotify(environment)
        self._children: dict[str, tuple[int, int, float]] = {}  # name: pid, pidfd, deadline
        self._figures: dict[str, dict[str, float]] = {}
        self._is_stopping = False
        self._wants_reload = False
        self._published: dict[str, dict[str, float]] = {}
        self._publish_at = 0.0
        self._config = config
        self._log, self._table, self._tasks = self._open(config)

    def _open(self, config: Config) -> tuple[Log, Timetable, TaskClock]:
        """Put the parts together. Raises: ConfigError, StorageError."""
        log = Log(PROGRAM, config.log_target, config.log_format)
        dispatcher = open_dispatcher(config, log, environment=self._environment)
        zone = local_zone(self._environment)
        store = open_store(config)
        executions = Executions(dispatcher, store, self._environment)
        works = (*duties(dispatcher, zone), *task_duties(executions, config, zone))
        table = Timetable(works, time.time(), at_once=("recovery", "task-recovery"))
        return log, table, TaskClock(store, wake_directory(config), zone, log, executions)

    def run(self) -> int:
        """Serve until told to stop; gives the exit code."""
        reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._note_signal)
        self._log.info("scheduler-start", version=ctrl_exec.__version__, state_dir=self._config.state_dir)
        self._notify.ready()
        while not self._is_stopping:
            if self._wants_reload:
                self._reload()
            self._start_due()
            self._tasks.look(time.time())
            self._publish()
            self._sleep(reading)
            self._reap()
        self._notify.stopping()
        self._stop_children()
        self._tasks.close()
        self._publish_at = 0.0
        self._publish()
        self._log.info("scheduler-stop")
        return 0

    def _note_signal(self, number: int, _frame: object) -> None:
        if number == signal.SIGHUP:
            self._wants_reload = True
        else:
            self._is_stopping = True

    def _reload(self) -> None:
        """Take the new configuration, or keep the old one and say why."""
        self._wants_reload = False
        self._notify.reloading()
        try:
            config = load_config(self._path or None)
            log, table, tasks = self._open(config)
            self._tasks.close()
            self._config, self._log, self._table, self._tasks = config, log, table, tasks
            self._log.info("reload", result="ok")
        except CtrlExecError as error:
            self._log.error("reload", result="kept the old configuration", error=str(error))
        self._notify.ready()

    def _start_due(self) -> None:
        for duty, late_s in self._table.take_due(time.time()):
            self._figures.setdefault(duty.name, {}).update(lag_s=round(late_s, 3))
            if duty.name in self._children:
                self._log.warning(duty.name, error="still busy with the last round")
                continue
            try:
                pid = fork_child(lambda: self._do(duty))  # noqa: B023 - runs at once, in the child
                self._children[duty.name] = (pid, os.pidfd_open(pid), monotonic() + LONGEST_WORK_S)
            except OSError as error:
                self._log.error(duty.name, error=error.strerror or str(error))

    def _do(self, duty: Duty) -> int:
        """The child: a duty from beginning to end."""
        os.setpgid(0, 0)
        self._log.close()
        try:
            duty.work()
        except CtrlExecError as error:
            self._log.error(duty.name, error=str(error))
            return 1
        return 0

    def _sleep(self, reading: int) -> None:
        """Wait for the next moment, a signal, or the end of a child."""
        now = time.time()
        due = self._table.next_due()
        wait_s = LONGEST_SLEEP_S if due is None else min(LONGEST_SLEEP_S, max(0.0, due - now))
        wait_s = min(wait_s, self._tasks.rest_s(now))
        if self._figures != self._published:
            wait_s = min(wait_s, max(0.0, self._publish_at - monotonic()))
        if self._notify.watchdog_s is not None:
            self._notify.watchdog()
            wait_s = min(wait_s, self._notify.watchdog_s)
        poller = select.poll()
        for fd in (reading, self._tasks.fileno(), *(pidfd for _, pidfd, _ in self._children.values())):
            poller.register(fd, select.POLLIN)
        poller.poll(int(wait_s * 1000) + 1)
        with suppress(BlockingIOError):
            os.read(reading, 4096)

    def _reap(self) -> None:
        for name, (pid, pidfd, deadline) in tuple(self._children.items()):
            if monotonic() > deadline:
                self._log.error(name, error=f"killed after {LONGEST_WORK_S:g}s")
                end_group(pid)
            ended = wait_status(pid, timeout_s=0)
            if ended is None:
                continue
            os.close(pidfd)
            del self._children[name]
            figures = self._figures.setdefault(name, {})
            figures["rounds"] = figures.get("rounds", 0) + 1
            figures["failed"] = figures.get("failed", 0) + (ended != (0, 0))
            figures["last"] = round(time.time())
            if ended[1]:
                self._log.error(name, error=f"ended by signal {ended[1]}")

    def _stop_children(self) -> None:
        """Give children a moment to end; what they leave undone the next start does."""
        deadline = monotonic() + FAREWELL_S
        for pid, pidfd, _ in self._children.values():
            if wait_status(pid, timeout_s=max(0.0, deadline - monotonic())) is None:
                end_group(pid)
                wait_status(pid)
            os.close(pidfd)

    def _publish(self) -> None:
        """Write our figures for `/metrics`, now and then; nothing depends on them."""
        if len(self._tasks):
            figures = {"timers": len(self._tasks), "rounds": self._tasks.started}
            self._figures["tasks"] = figures | {"lag_s": round(self._tasks.lag_s, 3)}
        if monotonic() < self._publish_at:
            return
        self._publish_at = monotonic() + PUBLISH_PERIOD_S
        self._published = {name: dict(figures) for name, figures in self._figures.items()}
        with suppress(StorageError):
            files.make_dirs(self._config.metrics_dir, 0o750)
            path = os.path.join(self._config.metrics_dir, PROGRAM + ".json")
            document = {"at": round(time.time()), "pid": os.getpid(), "duties": self._figures}
            files.write_json(path, document, _METRICS_MODE)


def duties(dispatcher: Dispatcher, zone: tzinfo) -> tuple[Duty, ...]:
    """All that the clock starts. Raises: ConfigError for a bad cron expression."""
    return (
        Duty("recovery", every(RECOVERY_PERIOD_S), lambda: _recover(dispatcher)),
        Duty("purge", cron(dispatcher.config.purge_cron, zone), lambda: _purge(dispatcher)),
        Duty("sweep", cron(SWEEP_CRON, zone), lambda: _sweep(dispatcher)),
        Duty("run-index", every(INDEX_PERIOD_S), lambda: _keep_index(dispatcher)),
    )


def task_duties(executions: Executions, config: Config, zone: tzinfo) -> tuple[Duty, ...]:
    """What the clock does for executions of tasks, where there is a database of them."""

    def recover() -> None:
        if os.path.exists(config.tasks_db_path):
            executions.recover()

    def tell_long() -> None:
        if os.path.exists(config.tasks_db_path):
            executions.tell_long()

    def purge() -> None:
        if os.path.exists(config.tasks_db_path):
            executions.purge()

    return (
        Duty("task-recovery", every(RECOVERY_PERIOD_S), recover),
        Duty("task-purge", cron(config.purge_cron, zone), purge),
        Duty("task-long", every(LONG_PERIOD_S), tell_long),
    )


def _recover(dispatcher: Dispatcher) -> None:
    from ctrl_exec.operations.status import recover

    found = recover(dispatcher)
    if found.completed or found.unfinished:
        dispatcher.log.info("recovery", completed=found.completed, unfinished=found.unfinished)


def _purge(dispatcher: Dispatcher) -> None:
    from ctrl_exec.operations.status import purge

    purge(dispatcher)


def _sweep(dispatcher: Dispatcher) -> None:
    from ctrl_exec.operations.status import sweep

    sweep(dispatcher)


def _keep_index(dispatcher: Dispatcher) -> None:
    from ctrl_exec.operations.runs import keep_index

    keep_index(dispatcher)


if __name__ == "__main__":
    sys.exit(main())
