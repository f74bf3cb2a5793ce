"""A site under load whose processes are killed at any moment.

Each command leaves a mark that is in no database: a file that only the first of its name can make, named by
its process (number and start, as its execution has them on record) or by its run. A lock that a command and
whatever it leaves behind hold as long as they live tells whether two of one task ever ran at once.
"""

from __future__ import annotations

import http.client
import os
import random
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from ctrl_exec.tasks.execution.executions import ExecutionFilter, list_executions
from ctrl_exec.tasks.models import OPEN_STATUSES, Execution
from tests.support.fleet import Fleet
from tests.support.office import PROJECT, Office
from tests.support.polling import eventually
from tests.support.processes import Running

NS = 1_000_000_000
EVERYTHING = 1_000_000
SETTLED_S = 150.0

# fields 1 and 22 of proc(5)'s stat: what an execution has on record of its group
MARKING = """\
set -C
about=($(</proc/$$/stat))
: > "$CPC_MARKS/local-$$-${about[21]}" || : > "$CPC_MARKS/twice-$$-${about[21]}"
set +C
"""
ALONE = 'exec 9>> "$CPC_MARKS/lock-$CPP_TASK"; flock -n 9 || : > "$CPC_MARKS/overlap-$CPP_TASK-$$"\n'

SCRIPT = """\
#!/bin/bash
read -r told
reqid=${told#*'"reqid": "'}
set -C
: > "%(marks)s/agent-${reqid%%%%\\"*}-%(host)s" || : > "%(marks)s/twice-$$"
sleep 0.$((RANDOM %% 9))
exit $((RANDOM %% 4 == 0))
"""

EACH_SECOND, EACH_OTHER = "* * * * * *", "*/2 * * * * *"
TWICE, BACK_OFF = {"maxAttempts": 3, "delay": 0}, {"maxAttempts": 3, "delay": 1, "backoff": 2}
# name: cron, policy, what it does once it has left its mark, and the rest on the wire
COMMANDS: dict[str, tuple[str | None, str, str, dict[str, Any]]] = {
    "quick": (EACH_SECOND, "REJECT", ":", {"missedRunPolicy": "RUN_ONCE"}),
    "flaky": (EACH_OTHER, "REJECT", "exit $((RANDOM % 3 == 0))", {"retry": TWICE}),
    "chained": (EACH_SECOND, "SMART_CHAINING", "sleep 600 & sleep 0.$((RANDOM % 9))", {}),
    "replaced": (EACH_OTHER, "REPLACEMENT", "sleep 600 & sleep 3", {"startDeadline": 2}),
    "many": (EACH_SECOND, "CONCURRENCY", "sleep 0.7; exit $((RANDOM % 2))",
             {"maxConcurrency": 3, "retry": BACK_OFF}),
    "limited": (EACH_OTHER, "REJECT", "sleep 600 & sleep 600", {"timeout": 1, "timeoutDurationUnit": "SECOND"}),
    "asked": (None, "SMART_CHAINING", "sleep 1", {}),
}  # fmt: skip
SCRIPTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "on-agents": (EACH_OTHER, "REJECT", {"retry": TWICE}),
    "on-agents-chained": (EACH_SECOND, "SMART_CHAINING", {}),
    "on-agents-replaced": (EACH_OTHER, "REPLACEMENT", {}),
    "on-agents-many": (EACH_OTHER, "CONCURRENCY", {"maxConcurrency": 2}),
}


class Site(Office):
    """An office with agents and a CA."""

    def __post_init__(self) -> None:
        Fleet.__post_init__(self)
        port = self.pairing_port
        super().__post_init__()
        self.pairing_port = port
        self.write_conf({"api_auth_default": None})


class Ordeal:
    """A site, its load, and the hand that kills; close it at the end."""

    def __init__(self, home: Path, seed: int, *, schedulers: int = 1, agents: tuple[str, ...] = ()) -> None:
        self.site = Site(home) if agents else Office(home)
        self.marks = home / "marks"
        self.marks.mkdir()
        self.tasks: dict[str, str] = {}
        self.created_s: dict[str, int] = {}
        self.aborted: set[str] = set()
        self._random = random.Random(seed)
        self._schedulers: list[Running] = []
        self._count = schedulers
        made = [self.site.new_agent(name, scripts=self._scripts(name)) for name in agents]
        if made:
            self.site.pair(*made)
        for agent in made:
            self.site.start_agent(agent)
        self.site.start_api()

    def _scripts(self, host: str) -> dict[str, str]:
        return dict.fromkeys(SCRIPTS, SCRIPT % {"marks": self.marks, "host": host})

    # -- load -------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Make the tasks and start the schedulers."""
        self._ask(
            "POST", f"/api/v1/projects/{PROJECT}/constants", {"name": "MARKS", "value": str(self.marks)}
        )
        for name, (cron, policy, line, rest) in COMMANDS.items():
            alone = "" if policy == "CONCURRENCY" else ALONE
            kind = {"useShellFg": True, "commandLine": MARKING + alone + line, "logOutput": "ON_FAILURE"}
            own = {"name": "TASK", "type": "TEXT", "defaultValue": name}
            document = {"taskType": "LOCAL_COMMAND", "localCommandTask": kind, "parameters": [own]}
            self._add(name, cron, policy, document | {"agentScriptTask": None} | rest)
        hosts = list(self.site.agents)
        for name, (cron, policy, rest) in SCRIPTS.items() if hosts else ():
            kind = {"script": name, "hosts": hosts, "lockWait": 5}
            self._add(name, cron, policy, {"agentScriptTask": kind} | rest)
        for _ in range(self._count):
            self._start_scheduler()

    def _add(self, name: str, cron: str | None, policy: str, document: dict[str, Any]) -> None:
        when = {"scheduledFg": cron is not None, "cronExpression": cron, "multipleExecutionPolicy": policy}
        task = self.site.create_task(**document, **when)
        self.tasks[name], self.created_s[name] = task["taskId"], task["creationTs"] // NS

    def _ask(self, method: str, path: str, body: object = None) -> Any:
        """One request; what an API that is killed meanwhile does not answer is not asked again."""
        with suppress(http.client.HTTPException, OSError):
            answer = self.site.ask(method, path, body)
            assert answer.status != 500, answer.body
            return answer
        return None

    def disturb(self) -> None:
        """A request of somebody: a start, an abort, another try, the change of a task."""
        task_id = self._random.choice([*self.tasks.values()])
        act = self._random.choice(("start", "start", "abort", "retry", "change"))
        if act == "start":
            self._ask("POST", "/api/v1/executions", {"taskId": task_id})
        elif act == "change":
            self._ask("PATCH", f"/api/v1/tasks/{task_id}", {"description": str(self._random.random())})
        else:
            answer = self._ask("GET", f"/api/v1/executions?taskId={task_id}&limit=5")
            is_answered = answer is not None and answer.status == 200  # it may be busy
            for each in answer.json["items"][:1] if is_answered else ():
                if act == "abort":  # also where no answer comes: it may have been heard
                    self.aborted.add(each["executionId"])
                self._ask("POST", f"/api/v1/executions/{each['executionId']}/{act}")

    # -- kills ------------------------------------------------------------------------------------

    def kill_some(self, rounds: int) -> None:
        """Kill a scheduler, one of its children or carriers, the API or one of its children, so often."""
        for _ in range(rounds):
            until = time.monotonic() + self._random.uniform(0.02, 0.6)
            self.disturb()
            eventually(lambda: time.monotonic() > until)  # noqa: B023 - asked at once
            self._random.choice(
                (self._kill_scheduler, self._kill_carrier, self._kill_carrier, self._kill_api)
            )()

    def _start_scheduler(self) -> None:
        started = self.site.start_scheduler()
        self._schedulers.append(started)
        started.wait_for("ACTION=scheduler-start", timeout_s=60)

    def _kill_scheduler(self) -> None:
        victim = self._schedulers.pop(self._random.randrange(len(self._schedulers)))
        _kill(victim.pid)
        victim.process.wait(60)
        self._start_scheduler()

    def _kill_carrier(self) -> None:
        known = {each.pid for each in self._schedulers}
        others = [pid for pid in self.family("ctrl_exec.scheduler.main") if pid not in known]
        if others:
            _kill(self._random.choice(others))

    def _kill_api(self) -> None:
        api = self.site.api
        assert api is not None
        children = [pid for pid in self.family("ctrl_exec.api.main") if pid != api.pid]
        if children and self._random.random() < 0.5:
            _kill(self._random.choice(children))
            return
        _kill(api.pid)
        api.process.wait(60)
        self.site.start_api()

    def family(self, word: str = "") -> list[int]:
        """The processes of this site in whose command line or environment the word is."""
        return [pid for pid, text in _processes() if str(self.site.home) in text and word in text]

    # -- the end ----------------------------------------------------------------------------------

    def settle(self) -> list[Execution]:
        """Let the clock judge what was due, take the schedules away, wait for all ends; gives everything."""
        self._kill_scheduler()
        now_ns = time.time_ns()
        with self.site.store() as store:
            sql = "SELECT MIN(coalesce(seen_ns, since_ns)) AS seen FROM timers"

            def is_judged() -> bool:
                row = store.row(sql)
                return row is not None and row["seen"] > now_ns

            eventually(is_judged, timeout_s=SETTLED_S, what="what was due is judged")
            for task_id in self.tasks.values():
                answer = self.site.ask("PATCH", f"/api/v1/tasks/{task_id}", {"scheduledFg": False})
                assert answer.status == 200, answer.body

            def under_way() -> list[str]:
                open_ones = ExecutionFilter(statuses=OPEN_STATUSES)
                found = list_executions(store, open_ones, limit=EVERYTHING)
                return [f"{each.execution_id} {each.status} {each.claimer}" for each in found]

            eventually(lambda: not under_way(), timeout_s=SETTLED_S, pause_s=0.2, what="all is over")
            return sorted(
                list_executions(store, ExecutionFilter(), limit=EVERYTHING), key=lambda each: each.created_ns
            )

    def leftovers(self) -> list[str]:
        """What still lives of the site once all its programs are told to end."""
        self.site.close()
        for each in self._schedulers:
            each.stop()

        def living() -> list[str]:
            return [text[-200:] for _, text in _processes() if str(self.site.home) in text]

        with suppress(AssertionError):
            eventually(lambda: not living(), timeout_s=60)
        return living()

    def close(self) -> None:
        """End everything, however far it came."""
        for each in self._schedulers:
            each.stop()
        self.site.close()
        for pid in self.family():
            _kill(pid)


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):  # it ended by itself in this moment
        os.kill(pid, signal.SIGKILL)


def _processes() -> list[tuple[int, str]]:
    """Number, and command line with environment, of each process that lives; of zombies both are empty."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            with suppress(OSError):
                text = (
                    Path(f"/proc/{entry}/cmdline").read_bytes() + Path(f"/proc/{entry}/environ").read_bytes()
                )
                found.append((int(entry), text.decode("utf-8", "replace")))
    return found
