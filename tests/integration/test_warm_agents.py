"""Warm connections between a real API and real agents: whatever breaks, nothing is lost or repeated."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fleet import Answer, Fleet, FleetAgent
from tests.support.polling import eventually
from tests.support.processes import Running, children_of, workers_of

# one line in the file for each time it runs; then it waits until the file is renamed
COUNT = '#!/bin/sh\necho ran >> "$1"\nwhile [ -e "$2" ]; do sleep 0.05; done\necho finished\n'


class Counted:
    """A script that counts its runs, and may be held."""

    def __init__(self, home: Path) -> None:
        self.path = home / "count"
        self.hold = home / "hold"

    @property
    def body(self) -> dict[str, object]:
        """The run."""
        return {"hosts": ["host-a"], "script": "count", "args": [str(self.path), str(self.hold)]}

    def runs(self) -> int:
        """How often it has run."""
        return len(self.path.read_text().splitlines()) if self.path.exists() else 0


@pytest.fixture
def warm(own_fleet: Fleet) -> Fleet:
    """host-a with the counting script, and the API."""
    agent = own_fleet.agents["host-a"]
    agent.script("count", COUNT, "lock=no")
    restart(own_fleet)
    own_fleet.start_api()
    return own_fleet


@pytest.fixture
def counted(tmp_path: Path) -> Iterator[Counted]:
    """The script, released at the end."""
    made = Counted(tmp_path)
    yield made
    made.hold.unlink(missing_ok=True)


def agent_of(fleet: Fleet) -> FleetAgent:
    return fleet.agents["host-a"]


def process_of(fleet: Fleet) -> Running:
    running = agent_of(fleet).running
    assert running is not None
    return running


def api_of(fleet: Fleet) -> Running:
    assert fleet.api is not None
    return fleet.api


def restart(fleet: Fleet) -> None:
    process_of(fleet).stop()
    fleet.start_agent(agent_of(fleet))


def states(answer: Answer) -> list[object]:
    assert answer.status == 200, answer.body
    found = answer.json["results"]
    assert isinstance(found, list)
    return [each["state"] for each in found]


def run_ok(fleet: Fleet, counted: Counted) -> None:
    """One run that must succeed, once."""
    before = counted.runs()
    assert states(fleet.http("POST", "/run", counted.body)) == ["ok"]
    assert counted.runs() == before + 1


def connection_of(fleet: Fleet) -> int:
    """The agent's child that waits on the kept connection."""
    (pid,) = eventually(lambda: children_of(process_of(fleet).pid))
    return int(pid)


def start_held(fleet: Fleet, counted: Counted, **more: object) -> tuple[threading.Thread, list[Answer]]:
    """A run that has begun and is held."""
    counted.hold.touch()
    before = counted.runs()
    answers: list[Answer] = []
    thread = threading.Thread(target=lambda: answers.append(fleet.http("POST", "/run", counted.body | more)))
    thread.start()
    eventually(lambda: counted.runs() == before + 1, what="the script runs")
    return thread, answers


def complete(fleet: Fleet, answer: Answer) -> dict[str, object]:
    """The record of the run once it is complete."""

    def probe() -> dict[str, object] | None:
        found = fleet.http("GET", f"/status/{answer.json['reqid']}").json
        return found if "completed" in found else None

    found = eventually(probe, timeout_s=60, what="the run is complete")
    assert found is not None
    return found


def final_states(fleet: Fleet, answer: Answer) -> list[object]:
    found = complete(fleet, answer)["results"]
    assert isinstance(found, list)
    return [each["state"] for each in found]


def test_two_runs_share_a_connection(warm: Fleet, counted: Counted) -> None:
    run_ok(warm, counted)
    kept = connection_of(warm)
    run_ok(warm, counted)
    assert warm.http("POST", "/ping", {"hosts": ["host-a"]}).status == 200
    assert connection_of(warm) == kept


def test_an_agent_that_was_restarted_is_met_on_a_fresh_connection(warm: Fleet, counted: Counted) -> None:
    for _ in range(3):
        run_ok(warm, counted)
        restart(warm)
    run_ok(warm, counted)


def test_an_agent_that_was_killed_and_started_is_met_on_a_fresh_connection(
    warm: Fleet, counted: Counted
) -> None:
    run_ok(warm, counted)
    process_of(warm).kill()
    warm.start_agent(agent_of(warm))
    run_ok(warm, counted)


def test_the_reload_of_an_agent_ends_idle_connections_and_no_run(warm: Fleet, counted: Counted) -> None:
    run_ok(warm, counted)
    kept = connection_of(warm)
    process_of(warm).process.send_signal(signal.SIGHUP)
    eventually(lambda: kept not in children_of(process_of(warm).pid), what="the idle child ends")
    run_ok(warm, counted)
    thread, answers = start_held(warm, counted)
    process_of(warm).process.send_signal(signal.SIGHUP)
    counted.hold.unlink()
    thread.join(60)
    assert states(answers[0]) == ["ok"]
    run_ok(warm, counted)


def test_the_reload_of_the_daemon_ends_idle_connections_and_no_run(warm: Fleet, counted: Counted) -> None:
    api = api_of(warm)
    thread, answers = start_held(warm, counted)
    old = workers_of(api.pid)
    assert old
    api.process.send_signal(signal.SIGHUP)
    eventually(lambda: len(set(workers_of(api.pid)) - set(old)) == len(old), what="new workers")
    counted.hold.unlink()
    thread.join(60)
    assert states(answers[0]) == ["ok"]
    eventually(lambda: not set(old) & set(workers_of(api.pid)), what="the old workers end")
    eventually(lambda: not children_of(process_of(warm).pid), what="their connections are closed")
    run_ok(warm, counted)


def test_the_death_of_a_worker_ends_no_run(warm: Fleet, counted: Counted) -> None:
    thread, answers = start_held(warm, counted)
    api = api_of(warm)
    old = workers_of(api.pid)
    for pid in old:
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: len(workers_of(api.pid)) == len(old) and not set(old) & set(workers_of(api.pid)))
    # who carries the run attaches to it again, by the new workers
    counted.hold.unlink()
    thread.join(60)
    assert states(answers[0]) == ["ok"]
    assert counted.runs() == 1
    api.wait_for("a worker died")
    run_ok(warm, counted)
    run_ok(warm, counted)


def test_the_death_of_the_agents_child_ends_no_run(warm: Fleet, counted: Counted) -> None:
    run_ok(warm, counted)
    thread, answers = start_held(warm, counted)
    for pid in children_of(process_of(warm).pid):
        os.kill(pid, signal.SIGKILL)
    thread.join(90)
    counted.hold.unlink()
    assert final_states(warm, answers[0]) in (["ok"], ["lost"])
    assert counted.runs() == 2
    run_ok(warm, counted)


def test_a_detached_run_outlives_its_daemon_and_its_workers(warm: Fleet, counted: Counted) -> None:
    counted.hold.touch()
    answer = warm.http("POST", "/run", counted.body | {"async": True})
    assert answer.status == 202
    eventually(lambda: counted.runs() == 1)
    assert api_of(warm).stop() == 0
    warm.start_api()
    counted.hold.unlink()
    assert final_states(warm, answer) == ["ok"]
    assert counted.runs() == 1


def test_a_new_certificate_of_the_dispatcher_takes_a_new_connection(warm: Fleet, counted: Counted) -> None:
    run_ok(warm, counted)
    kept = connection_of(warm)
    certificate = warm.home / "etc" / "dispatcher.crt"
    fresh = certificate.with_suffix(".new")
    shutil.copy2(certificate.resolve(), fresh)
    os.replace(fresh, certificate.resolve())
    eventually(lambda: kept not in children_of(process_of(warm).pid), what="the idle connection is closed")
    run_ok(warm, counted)


def test_a_revoked_agent_is_neither_kept_nor_asked(warm: Fleet, counted: Counted) -> None:
    run_ok(warm, counted)
    kept = connection_of(warm)
    made = warm.cli("revoke", "host-a")
    assert made.returncode == 0, made.stderr
    answer = warm.http("POST", "/run", counted.body)
    assert answer.status != 200 or states(answer) == ["refused"]
    assert counted.runs() == 1
    eventually(lambda: kept not in children_of(process_of(warm).pid), what="the idle connection is closed")


def test_idle_connections_end_by_themselves(warm: Fleet, counted: Counted) -> None:
    warm.write_conf({"agent_keepalive": 1})
    api_of(warm).stop()
    warm.start_api()
    run_ok(warm, counted)
    eventually(lambda: not children_of(process_of(warm).pid), what="the connection is closed")
    run_ok(warm, counted)


def test_without_keeping_there_are_no_workers(warm: Fleet, counted: Counted) -> None:
    warm.write_conf({"agent_keepalive": 0})
    api = api_of(warm)
    api.process.send_signal(signal.SIGHUP)
    eventually(lambda: not workers_of(api.pid), what="the workers end")
    run_ok(warm, counted)
    eventually(lambda: not children_of(process_of(warm).pid))
    warm.write_conf({"agent_keepalive": 60})
    api.process.send_signal(signal.SIGHUP)
    eventually(lambda: workers_of(api.pid), what="workers again")
    run_ok(warm, counted)


def test_runs_go_on_where_workers_cannot_be_had(warm: Fleet, counted: Counted) -> None:
    api_of(warm).stop()
    shutil.rmtree(warm.state / "workers")
    (warm.state / "workers").write_text("in the way")
    api = warm.start_api()
    api.wait_for("no warm connections")
    assert not workers_of(api.pid)
    run_ok(warm, counted)
