"""Executions against a model: policies, claims, ends, attempts, aborts and crashes, in whatever order."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from ctrl_exec.tasks.clock.timers import list_timers
from ctrl_exec.tasks.definitions import create_task, load_task
from ctrl_exec.tasks.execution import carriage
from ctrl_exec.tasks.execution.carriage import ExecutionFiles
from ctrl_exec.tasks.execution.executions import (
    ExecutionFilter,
    PolicyError,
    Start,
    claim_start,
    list_executions,
    request_execution,
)
from ctrl_exec.tasks.execution.lifecycle import NS, Outcome
from ctrl_exec.tasks.execution.starting import claim_next, next_moment_ns, recover, waits_for
from ctrl_exec.tasks.models import Project, User
from ctrl_exec.tasks.people.identity import local_identity
from ctrl_exec.tasks.people.users import add_user
from ctrl_exec.tasks.projects import add_project
from ctrl_exec.tasks.store import Store

BEGAN_NS = 1_727_647_374 * NS
MOST_RUNNING, MOST_CONCURRENT, ATTEMPTS = 3, 2, 3
DELAY_S, BACKOFF = 60, 2
# project and policy of each task; all but the first try again
TASKS = (
    ("a", "REJECT"),
    ("a", "SMART_CHAINING"),
    ("b", "REPLACEMENT"),
    ("b", "CONCURRENCY"),
    ("a", "REJECT"),
)
OPEN = ("PENDING", "RUNNING", "ABORTING")
task_numbers = st.integers(0, len(TASKS) - 1)
picks = st.integers(0, 9)


@dataclass
class Known:
    """What the model knows of an execution; `held` is the lock of a carrier that lives."""

    execution_id: str
    task: int
    status: str = "PENDING"
    is_claimed: bool = False
    attempt: int = 1
    retry_of: str | None = None
    not_before_ns: int = 0
    claimed_ns: int = 0
    claimer: str = ""
    held: int | None = None
    reason: str | None = None

    @property
    def is_open(self) -> bool:
        """Whether something may come of it."""
        return self.status in OPEN


class ExecutionMachine(RuleBasedStateMachine):
    """One database with a task for each policy, a clock, and carriers that a rule may kill."""

    @initialize()
    def make(self) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="ctrl-exec-test-"))
        self.now_ns = BEGAN_NS
        self.store = Store(str(self.home / "tasks.db"), clock_ns=self.tick)
        # what is durable is not asked here, and a hundred times slower
        self.store.connection.execute("PRAGMA synchronous = OFF")
        self.files = ExecutionFiles(str(self.home / "executions"))
        root = local_identity(self.store, "root")
        add_user(self.store, root, User("", "admin", is_administrator=True))
        for name in ("a", "b"):
            add_project(self.store, root, Project("", name))
        self.tasks = [self.add_task(number, *each) for number, each in enumerate(TASKS)]
        self.known: dict[str, Known] = {}
        self.due_s = self.now_ns // NS
        self.count = 0

    def add_task(self, number: int, project_id: str, policy: str) -> str:
        most = {"maxConcurrency": MOST_CONCURRENT} if policy == "CONCURRENCY" else {}
        retry = {"retry": {"maxAttempts": ATTEMPTS, "delay": DELAY_S, "backoff": BACKOFF}} if number else {}
        document = {
            "projectId": project_id, "name": f"t{number}", "taskType": "LOCAL_COMMAND",
            "multipleExecutionPolicy": policy, "scheduledFg": True, "cronExpression": "* * * * * *",
            "localCommandTask": {"useShellFg": False, "program": "true", "args": []},
        }  # fmt: skip
        admin = local_identity(self.store, "admin")
        return create_task(self.store, admin, document | most | retry).task_id

    def tick(self) -> int:
        # ids of one millisecond sort by chance: here each moment has its own
        self.now_ns += 1_000_000
        return self.now_ns

    def teardown(self) -> None:
        if not hasattr(self, "known"):
            return
        try:
            self.all_comes_to_an_end()
        finally:
            for each in self.known.values():
                self.let_go(each)
            self.store.close()
            shutil.rmtree(self.home, ignore_errors=True)

    # -- the model --------------------------------------------------------------------------------

    def of_task(self, number: int) -> list[Known]:
        return [each for each in self.known.values() if each.task == number and each.is_open]

    def is_refused(self, number: int) -> bool:
        policy, current = TASKS[number][1], self.of_task(number)
        if policy == "REJECT":
            return bool(current)
        if policy == "SMART_CHAINING":
            return any(each.status == "PENDING" for each in current)
        return policy == "CONCURRENCY" and len(current) >= MOST_CONCURRENT

    def note_new(self, execution_id: str, number: int, **facts: Any) -> None:
        if TASKS[number][1] == "REPLACEMENT" and "retry_of" not in facts:
            for each in self.of_task(number):
                is_begun = each.is_claimed or each.status != "PENDING"
                each.reason = each.reason if each.status == "ABORTING" else "POLICY"
                each.status = "ABORTING" if is_begun else "ABORTED"
        self.known[execution_id] = Known(execution_id, number, **facts)

    def next_to_start(self) -> Known | None:
        claimed = [each for each in self.known.values() if each.is_open and each.is_claimed]
        if len(claimed) >= MOST_RUNNING:
            return None
        counts = {name: sum(TASKS[each.task][0] == name for each in claimed) for name in ("a", "b")}
        waiting = [
            each
            for each in self.known.values()
            if each.status == "PENDING"
            and not each.is_claimed
            and each.not_before_ns <= self.now_ns
            and (TASKS[each.task][1] == "CONCURRENCY" or not any(each.task == one.task for one in claimed))
        ]
        order = [(counts[TASKS[each.task][0]], each.execution_id) for each in waiting]
        return self.known[min(order)[1]] if order else None

    def note_end(self, each: Known, status: str, reason: str | None, again: Any) -> None:
        is_tried = (
            each.task > 0
            and each.status != "ABORTING"
            and status in ("FAILED", "TIMED_OUT", "LOST")
            and each.attempt < ATTEMPTS
        )
        if each.status == "ABORTING" and status == "TIMED_OUT":
            status, reason = "ABORTED", "aborted"
        each.status, each.reason = status, reason
        assert (again is not None) == is_tried
        if is_tried:
            assert again.not_before_ns >= self.now_ns - NS + DELAY_S * BACKOFF ** (each.attempt - 1) * NS
            self.note_new(
                again.execution_id,
                each.task,
                attempt=each.attempt + 1,
                retry_of=each.execution_id,
                not_before_ns=again.not_before_ns,
            )

    def retry_of(self, execution_id: str) -> Any:
        found = list_executions(self.store, ExecutionFilter(), limit=1000)
        return next((each for each in found if each.retry_of == execution_id), None)

    def let_go(self, each: Known) -> None:
        if each.held is not None:
            os.close(each.held)
            each.held = None

    def picked(self, several: list[Known], number: int) -> Known | None:
        return several[number % len(several)] if several else None

    # -- what happens -----------------------------------------------------------------------------

    @rule(number=task_numbers)
    def somebody_asks(self, number: int) -> None:
        is_refused = self.is_refused(number)
        try:
            made = request_execution(self.store, Start(self.tasks[number]))
        except PolicyError:
            assert is_refused
            return
        assert not is_refused
        self.note_new(made.execution_id, number)

    @rule(number=task_numbers, reason=st.sampled_from([None, None, "MISSED"]), is_again=st.booleans())
    def the_clock_asks(self, number: int, reason: str | None, is_again: bool) -> None:
        (timer,) = list_timers(self.store, self.tasks[number])
        self.due_s += 1
        is_refused = reason is None and self.is_refused(number)
        made = claim_start(self.store, timer, self.due_s * NS, skip_reason=reason, parameter_map={})
        assert made is not None
        if reason is None and not is_refused:
            assert made.status == "PENDING"
            self.note_new(made.execution_id, number)
        else:
            reason = reason or "POLICY"
            assert (made.status, made.reason) == ("SKIPPED", reason)
            self.known[made.execution_id] = Known(made.execution_id, number, "SKIPPED", reason=reason)
        if is_again:
            assert claim_start(self.store, timer, self.due_s * NS, parameter_map={}) is None

    @rule(lives=st.booleans())
    def a_scheduler_looks(self, lives: bool) -> None:
        expected = self.next_to_start()
        self.count += 1
        claimer = f"claimer {self.count}"
        found = claim_next(self.store, claimer, max_running=MOST_RUNNING)
        assert found == (expected.execution_id if expected else None)
        if expected is not None:
            expected.is_claimed, expected.claimer, expected.claimed_ns = True, claimer, self.now_ns
            if lives:
                expected.held = self.files.hold(expected.execution_id)
                assert expected.held is not None

    @rule(pick=picks)
    def a_carrier_begins(self, pick: int) -> None:
        ready = [
            each
            for each in self.known.values()
            if each.held is not None and each.is_claimed and each.status in ("PENDING", "ABORTING")
        ]
        each = self.picked(ready, pick)
        if each is None or self.row(each)["start_ns"] is not None:
            return
        is_begun = carriage.begin(self.store, each.execution_id, each.claimer)
        assert is_begun == (each.status == "PENDING")
        if is_begun:
            each.status = "RUNNING"
        else:
            carriage.end(self.store, None, each.execution_id, Outcome("ABORTED", None, "aborted"))
            each.status, each.reason = "ABORTED", "aborted"
            self.let_go(each)

    @rule(pick=picks, status=st.sampled_from(["SUCCESS", "FAILED", "FAILED", "TIMED_OUT", "ABORTED"]))
    def a_carrier_ends(self, pick: int, status: str) -> None:
        running = [
            each
            for each in self.known.values()
            if each.held is not None and each.status in ("RUNNING", "ABORTING") and self.row(each)["start_ns"]
        ]
        each = self.picked(running, pick)
        if each is None or (status == "ABORTED" and each.status != "ABORTING"):
            return
        task = load_task(self.store, self.tasks[each.task])
        again = carriage.end(self.store, task, each.execution_id, Outcome(status, None, "so"))
        self.note_end(each, status, "so", again)
        self.let_go(each)

    @rule(pick=picks)
    def somebody_aborts(self, pick: int) -> None:
        each = self.picked(list(self.known.values()), pick)
        if each is None:
            return
        if each.status == "PENDING" and not each.is_claimed:
            each.status, each.reason = "ABORTED", "aborted"
        elif each.status in ("PENDING", "RUNNING"):
            each.status = "ABORTING"
        assert carriage.abort(self.store, each.execution_id) == each.status

    @rule(pick=picks)
    def a_carrier_is_killed(self, pick: int) -> None:
        each = self.picked([each for each in self.known.values() if each.held is not None], pick)
        if each is not None:
            self.let_go(each)

    @rule(is_gone=st.booleans())
    def recovery_looks(self, is_gone: bool) -> None:
        dead = [
            each for each in self.known.values() if each.is_open and each.is_claimed and each.held is None
        ]
        back = [
            each for each in dead if each.status == "PENDING" and self.now_ns - each.claimed_ns >= 30 * NS
        ]
        cut_off = [each for each in dead if each.status in ("RUNNING", "ABORTING")]
        for each in cut_off:
            carriage.note_group(self.store, each.execution_id, 4711, 1)
        found = recover(self.store, self.files, end_group=lambda _pid, _started: is_gone)
        assert set(found.given_back) == {each.execution_id for each in back}
        for each in back:
            each.is_claimed = False
        assert set(found.lost) == ({each.execution_id for each in cut_off} if is_gone else set())
        for each in cut_off if is_gone else ():
            was = each.status
            status, reason = ("ABORTED", "aborted") if was == "ABORTING" else ("LOST", None)
            self.note_end(each, status, reason, self.retry_of(each.execution_id))

    @rule(seconds=st.sampled_from([1, 31, DELAY_S, DELAY_S * BACKOFF]))
    def time_passes(self, seconds: int) -> None:
        self.now_ns += seconds * NS

    # -- what is always true ----------------------------------------------------------------------

    def row(self, each: Known) -> Any:
        found = self.store.row("SELECT * FROM executions WHERE execution_id = ?", (each.execution_id,))
        assert found is not None
        return found

    @invariant()
    def the_records_are_what_the_model_says(self) -> None:
        if not hasattr(self, "known"):
            return
        found = list_executions(self.store, ExecutionFilter(), limit=1000)
        assert {each.execution_id for each in found} == self.known.keys()
        for each in found:
            known = self.known[each.execution_id]
            assert (each.status, each.attempt, each.retry_of) == (
                known.status,
                known.attempt,
                known.retry_of,
            )
            if known.is_open:
                assert (each.claimer is not None) == known.is_claimed
            elif known.reason is not None:
                assert each.reason == known.reason
            assert (each.end_ns is None) == known.is_open
            is_waiting = each.status == "PENDING" and not known.is_claimed
            assert (waits_for(self.store, each, max_running=MOST_RUNNING) is not None) == is_waiting

    @invariant()
    def policies_hold(self) -> None:
        if not hasattr(self, "known"):
            return
        claimed = [each for each in self.known.values() if each.is_open and each.is_claimed]
        assert len(claimed) <= MOST_RUNNING
        for number, (_, policy) in enumerate(TASKS):
            current = self.of_task(number)
            pending = [each for each in current if each.status == "PENDING" and not each.is_claimed]
            if policy == "CONCURRENCY":
                assert len(current) <= MOST_CONCURRENT
            else:
                assert sum(each.is_claimed for each in current) <= 1
            if policy == "REJECT":
                assert len(current) <= 1
            if policy == "REPLACEMENT":
                assert len(pending) <= 1
            if policy == "SMART_CHAINING":  # besides another attempt of what has failed
                assert sum(each.retry_of is None for each in pending) <= 1

    def all_comes_to_an_end(self) -> None:
        """With schedulers that look and carriers that live nothing stays open."""
        for _ in range(4 * len(self.known) + 10):
            if not any(each.is_open for each in self.known.values()):
                return
            self.now_ns += 31 * NS
            self.recovery_looks(is_gone=True)
            moment_ns = next_moment_ns(self.store)
            self.now_ns = max(self.now_ns, moment_ns or 0)
            for _ in range(MOST_RUNNING):
                self.a_scheduler_looks(lives=True)
            for _ in range(MOST_RUNNING):
                self.a_carrier_begins(pick=0)
            for _ in range(MOST_RUNNING):
                self.a_carrier_ends(pick=0, status="SUCCESS")
                self.a_carrier_ends(pick=0, status="ABORTED")
        assert not [each for each in self.known.values() if each.is_open]


ExecutionMachine.TestCase.settings = settings(
    max_examples=30, stateful_step_count=40, deadline=None, derandomize=True
)
test_executions = ExecutionMachine.TestCase
