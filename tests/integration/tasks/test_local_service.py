"""Local commands of tasks through `ctrl-exec-local`: with an API, a scheduler and the service, and each of them killed."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ctrl_exec.common.process import is_group_alive
from ctrl_exec.tasks.execution.executions import find_execution
from tests.integration.tasks.test_executions import command, ended, log_of, shown, start
from tests.support.local_service import USER, Works, keeper_of, open_home, seconds_of_sleep, wait_gone
from tests.support.office import Office
from tests.support.polling import eventually
from tests.support.processes import children_of

nap = seconds_of_sleep()


class Site(Office):
    """An office whose local commands a service executes."""

    service: Works

    def group_of(self, execution_id: str) -> int:
        """The process group of its command, once that is on record."""

        def group() -> int | None:
            with self.store() as store:
                return find_execution(store, execution_id).group_pid

        return eventually(group) or 0

    def begun(self, line: str, **changes: Any) -> str:
        """Have a line of shell executed that says `begun`; its id once it has."""
        execution_id = start(self, command(self, line, **changes))
        eventually(lambda: "begun\n" in log_of(self, execution_id))
        return execution_id


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A site of which the test may kill what it likes."""
    with open_home() as home:
        service = Works(home)
        service.start()
        made = Site(tmp_path, settings={"local_socket": str(service.socket), "local_user": USER})
        made.service = service
        try:
            made.start_api()
            made.start_scheduler()
            yield made
        finally:
            made.close()
            assert service.running is not None
            service.running.stop()


def test_a_command_runs_as_local_user_and_sees_neither_etc_nor_state(site: Site) -> None:
    """Its parameters and secrets reach it, its output is masked, an abort ends what it started."""
    secret = "s3cr3t-of-the-day"
    line = (
        f'id -un; echo "$CPP_NAME $CPP_KEY"; cat {site.state}/tasks.db {site.conf} >/dev/null 2>&1 && echo open;'
        " echo begun; exit 3"
    )
    parameters = [{"name": "NAME", "type": "TEXT"}, {"name": "KEY", "type": "SECRET"}]
    task_id = command(site, line, parameters=parameters)
    execution = ended(site, start(site, task_id, {"NAME": "a b", "KEY": secret}))
    assert (execution["status"], execution["exitCode"]) == ("FAILED", 3)
    if os.geteuid() == 0:
        assert log_of(site, execution["executionId"]) == f"{USER}\na b ********\nbegun\n"
    assert secret not in site.service.log()
    left = nap()
    execution_id = site.begun(f"setsid -f sleep {left}; echo begun; sleep {left}")
    group = site.group_of(execution_id)
    assert is_group_alive(group)
    assert site.ask("POST", f"/api/v1/executions/{execution_id}/abort").status == 202
    assert ended(site, execution_id)["status"] == "ABORTED"
    assert not is_group_alive(group)
    wait_gone(f"sleep\0{left}")


def test_without_the_service_it_fails_and_says_what_is_missing(site: Site) -> None:
    """The socket and the unit; once the service is there, the next execution succeeds."""
    assert site.service.running is not None
    site.service.running.stop()
    task_id = command(site, "id -un")
    execution = ended(site, start(site, task_id))
    assert (execution["status"], execution["exitCode"]) == ("FAILED", 126)
    assert str(site.service.socket) in execution["reason"]
    assert "systemctl enable --now ctrl-exec-local.socket" in execution["reason"]
    assert execution["reason"] in log_of(site, execution["executionId"])
    site.service.start()
    assert ended(site, start(site, task_id))["status"] == "SUCCESS"


@pytest.mark.long
def test_a_killed_carrier_ends_the_command_and_lost_is_said_once_it_is_gone(site: Site) -> None:
    """Also where the scheduler dies with it, and the service's main process too."""
    left = nap()
    execution_id = site.begun(f"setsid -f sleep {left}; echo begun; sleep {left}")
    group = site.group_of(execution_id)
    assert site.scheduler is not None
    carrier = _carrier(execution_id, site)
    assert site.service.running is not None
    site.scheduler.kill()
    site.service.running.process.kill()
    site.service.running.process.wait(30)
    os.kill(carrier, signal.SIGKILL)
    site.service.start()
    site.start_scheduler()
    execution = ended(site, execution_id)
    assert (execution["status"], execution["reason"]) == ("LOST", "the process that carried it died")
    assert not is_group_alive(group)
    wait_gone(f"sleep\0{left}")


@pytest.mark.long
def test_what_nobody_knows_of_stays_open_until_the_service_says_that_it_is_gone(site: Site) -> None:
    """Its keeper and the service are killed: who carries it leaves it to recovery, which asks until there is an answer."""
    left = nap()
    execution_id = site.begun(f"trap '' HUP PIPE; echo begun; sleep {left} & sleep {left}")
    group = site.group_of(execution_id)
    carrier = _carrier(execution_id, site)
    assert site.service.running is not None
    keeper = keeper_of(group)
    assert keeper in children_of(site.service.running.pid)
    site.service.running.stop(signal.SIGKILL)
    os.kill(keeper, signal.SIGKILL)
    eventually(lambda: not Path(f"/proc/{carrier}").exists())
    assert shown(site, execution_id)["status"] == "RUNNING"
    assert is_group_alive(group)
    assert site.scheduler is not None
    site.scheduler.stop()
    site.start_scheduler().wait_for("ACTION=task-recovery .*ctrl-exec-local is not to be reached")
    assert shown(site, execution_id)["status"] == "RUNNING"
    site.service.start()
    site.scheduler.stop()
    site.start_scheduler()
    assert ended(site, execution_id)["status"] == "LOST"
    assert not is_group_alive(group)


@pytest.mark.long
def test_a_killed_keeper_makes_it_lost_at_once(site: Site) -> None:
    """The carrier has the service end what is left."""
    left = nap()
    execution_id = site.begun(f"echo begun; sleep {left}")
    group = site.group_of(execution_id)
    os.kill(keeper_of(group), signal.SIGKILL)
    execution = ended(site, execution_id)
    assert execution["status"] == "LOST"
    assert "did not say how it ended" in execution["reason"]
    assert not is_group_alive(group)


@pytest.mark.long
def test_a_private_instance_executes_in_place_and_says_so(tmp_path: Path) -> None:
    """In the log of the scheduler, once for each command."""
    own = Office(tmp_path)
    try:
        own.start_api()
        scheduler = own.start_scheduler()
        execution = ended(own, start(own, command(own, "id -u")))
        assert log_of(own, execution["executionId"]) == f"{os.geteuid()}\n"
        scheduler.wait_for(f"ACTION=local-command EXECUTION={execution['executionId']} .*in the scheduler")
    finally:
        own.close()


def _carrier(execution_id: str, site: Site) -> int:
    """Who holds the execution's lock; a child of the scheduler may just be looking at it."""
    path = f"{execution_id}.lock"
    assert site.scheduler is not None
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) not in children_of(site.scheduler.pid):
            try:
                names = [os.readlink(each) for each in (entry / "fd").iterdir()]
            except OSError:
                continue
            if any(name.endswith(path) for name in names):
                return int(entry.name)
    raise AssertionError("nobody carries it")
