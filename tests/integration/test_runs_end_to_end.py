"""Runs from the caller's command to the agent's script and back, with everything that can go wrong."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import threading
from pathlib import Path

import pytest

from tests.support.descriptors import holders_of
from tests.support.fleet import Answer, Fleet
from tests.support.polling import eventually
from tests.support.processes import Running, children_of, command, environment, request_children_of


def results_of(answer: Answer) -> list[dict[str, object]]:
    found = answer.json["results"]
    assert isinstance(found, list)
    return found


def start_run(fleet: Fleet, body: dict[str, object]) -> tuple[threading.Thread, list[Answer]]:
    """POST /run in a thread; the answer appears in the list."""
    answers: list[Answer] = []
    thread = threading.Thread(target=lambda: answers.append(fleet.http("POST", "/run", body)))
    thread.start()
    return thread, answers


def running_record(fleet: Fleet, script: str = "gate") -> dict[str, object]:
    """The one record of the script that is not complete, once it is there and the agent has begun."""

    def probe() -> dict[str, object] | None:
        found = [each for each in fleet.records() if each["script"] == script and not each.get("complete")]
        return found[0] if found and spooled(fleet, str(found[0]["reqid"])) else None

    found = eventually(probe, what="a record of a running run")
    assert found is not None
    return found


def spooled(fleet: Fleet, reqid: str) -> list[Path]:
    return [path for agent in fleet.agents.values() for path in agent.home.glob(f"state/runs/*/{reqid}.json")]


def status(fleet: Fleet, reqid: object) -> dict[str, object]:
    answer = fleet.http("GET", f"/status/{reqid}")
    assert answer.status == 200, answer.body
    return answer.json


def wait_complete(fleet: Fleet, reqid: object) -> dict[str, object]:
    def probe() -> dict[str, object] | None:
        found = status(fleet, reqid)
        return found if "completed" in found else None

    found = eventually(probe, timeout_s=60, what=f"{reqid} is complete")
    assert found is not None
    return found


def test_a_run_on_two_hosts_over_http(fleet: Fleet) -> None:
    answer = fleet.http(
        "POST", "/run", {"hosts": ["host-a", "host-b"], "script": "hello", "args": ["a b", "ü"]}
    )
    assert answer.status == 200
    assert answer.json["ok"] is True
    reqid = answer.json["reqid"]
    for name, result in zip(("host-a", "host-b"), results_of(answer), strict=True):
        assert result["host"] == name
        assert (result["exit"], result["stdout"], result["stderr"], result["reqid"]) == (
            0,
            "hello a b ü\n",
            "",
            reqid,
        )
        assert str(result["rtt"]).endswith("ms")
    stored = status(fleet, reqid)
    assert stored["script"] == "hello"
    assert stored["hosts"] == ["host-a", "host-b"]
    assert stored["results"] == answer.json["results"]


def test_the_same_run_from_the_command_line(fleet: Fleet) -> None:
    found = fleet.cli_json("run", "host-b", "host-a", "hello", "--", "-x", "--json")
    assert found["ok"] is True
    results = found["results"]
    assert isinstance(results, list)
    assert [(each["host"], each["stdout"]) for each in results] == [
        ("host-b", "hello -x --json\n"), ("host-a", "hello -x --json\n"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("script", "code", "state", "exit_code"), [("fail", 3, "failed", 1), ("killed", 126, "failed", 1)]
)
def test_a_failing_script_is_a_result(
    fleet: Fleet, script: str, code: int, state: str, exit_code: int
) -> None:
    answer = fleet.http("POST", "/run", {"hosts": ["host-a"], "script": script})
    assert answer.status == 200
    assert [(each["exit"], each["state"]) for each in results_of(answer)] == [(code, state)]
    assert fleet.cli("run", "host-a", script).returncode == exit_code


def test_a_script_the_agent_does_not_allow_is_refused_by_it(fleet: Fleet) -> None:
    answer = fleet.http("POST", "/run", {"hosts": ["host-a"], "script": "rm-rf"})
    assert answer.status == 200
    result = results_of(answer)[0]
    assert (result["exit"], result["state"], result["error"]) == (-1, "refused", "script not permitted")


def test_an_unknown_agent_is_named_and_nothing_is_dispatched(fleet: Fleet) -> None:
    before = len(fleet.records())
    answer = fleet.http("POST", "/run", {"hosts": ["host-a", "host-x", "nope"], "script": "hello"})
    assert answer.status == 404
    assert answer.json["error"] == "unknown agent"
    assert "host-x" in str(answer.json["detail"])
    assert "nope" in str(answer.json["detail"])
    assert len(fleet.records()) == before
    assert fleet.cli("run", "host-x", "hello").returncode == 1


def test_a_script_gets_who_asked_on_its_stdin_and_no_secret_in_its_environment(fleet: Fleet) -> None:
    body = {"hosts": ["host-a"], "script": "stdin", "username": "alice", "token": "s3cret", "args": ["x"]}
    given = json.loads(str(results_of(fleet.http("POST", "/run", body))[0]["stdout"]))
    assert (given["script"], given["args"], given["username"], given["token"]) == (
        "stdin",
        ["x"],
        "alice",
        "s3cret",
    )
    assert given["dispatcher"]
    body = {"hosts": ["host-a"], "script": "environment", "username": "alice", "token": "s3cret"}
    shown = str(results_of(fleet.http("POST", "/run", body))[0]["stdout"])
    assert "s3cret" not in shown
    assert "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin" in shown
    assert "PYTHONPATH" not in shown
    for record in fleet.records():  # what a script prints is its own affair; the rest of a record is ours
        assert "s3cret" not in json.dumps({key: each for key, each in record.items() if key != "results"})


def test_two_same_runs_over_http_are_one_conflict(fleet: Fleet, gate: Path) -> None:
    body: dict[str, object] = {"hosts": ["host-a", "host-b"], "script": "gate", "args": [str(gate)]}
    thread, answers = start_run(fleet, body)
    running_record(fleet)
    conflict = fleet.http("POST", "/run", body)
    assert conflict.status == 409
    assert conflict.json == {
        "ok": False, "error": "locked", "code": 4, "conflicts": ["host-a", "host-b"], "detail": conflict.json.get("detail"),
    } or conflict.json == {"ok": False, "error": "locked", "code": 4, "conflicts": ["host-a", "host-b"]}  # fmt: skip
    locks = fleet.cli_json("list-locks")["locks"]
    assert locks == [{"host": "host-a", "script": "gate"}, {"host": "host-b", "script": "gate"}]
    other = fleet.http("POST", "/run", {"hosts": ["host-a"], "script": "hello"})
    assert other.status == 200
    gate.touch()
    thread.join(60)
    assert answers[0].status == 200
    assert fleet.http("POST", "/run", body).status == 200
    assert fleet.cli_json("list-locks")["locks"] == []


def test_a_run_of_the_command_line_locks_out_http_and_the_other_way_round(fleet: Fleet, gate: Path) -> None:
    body: dict[str, object] = {"hosts": ["host-a"], "script": "gate", "args": [str(gate)]}
    argv = command("ctrl-exec", "--config", fleet.conf, "run", "host-a", "gate", "--", gate)
    with subprocess.Popen(argv, env=environment(), stdout=subprocess.DEVNULL) as process:
        running_record(fleet)
        assert fleet.http("POST", "/run", body).status == 409
        gate.touch()
        assert process.wait(60) == 0
    gate.unlink()
    thread, _ = start_run(fleet, body)
    running_record(fleet)
    made = fleet.cli("run", "host-a", "gate", "--", gate)
    assert made.returncode == 4
    assert "host-a" in made.stderr
    gate.touch()
    thread.join(60)


def test_a_lock_wait_gets_its_turn(fleet: Fleet, gate: Path) -> None:
    body: dict[str, object] = {"hosts": ["host-a"], "script": "gate", "args": [str(gate)]}
    first, _ = start_run(fleet, body)
    running_record(fleet)
    second, answers = start_run(fleet, body | {"lock_wait": 60})
    gate.touch()
    first.join(60)
    second.join(60)
    assert answers[0].status == 200


def test_an_asynchronous_run_is_accepted_and_found_again(fleet: Fleet, gate: Path) -> None:
    answer = fleet.http(
        "POST", "/run", {"hosts": ["host-a"], "script": "gate", "args": [str(gate)], "async": True}
    )
    assert answer.status == 202
    reqid = answer.json["reqid"]
    assert answer.json["async"] is True
    assert results_of(answer) == [{"host": "host-a", "script": "gate", "status": "accepted", "reqid": reqid}]
    found = status(fleet, reqid)
    assert "completed" not in found
    gate.touch()
    done = wait_complete(fleet, reqid)
    results = done["results"]
    assert isinstance(results, list)
    assert results[0]["stdout"] == "started\nfinished\n"


def test_a_read_timeout_answers_and_the_run_goes_on(fleet: Fleet, gate: Path) -> None:
    body: dict[str, object] = {
        "hosts": ["host-a", "host-b"],
        "script": "gate",
        "args": [str(gate)],
        "read_timeout": 1,
    }
    answer = fleet.http("POST", "/run", body)
    assert answer.status == 200
    assert [(each["exit"], each["state"], each["error"]) for each in results_of(answer)] == [
        (-1, "running", "read timeout after 1s")
    ] * 2
    assert fleet.http("POST", "/run", body).status == 409
    gate.touch()
    done = wait_complete(fleet, answer.json["reqid"])
    results = done["results"]
    assert isinstance(results, list)
    assert [(each["exit"], each["state"], each["stdout"]) for each in results] == [
        (0, "ok", "started\nfinished\n")
    ] * 2
    eventually(lambda: fleet.cli_json("list-locks")["locks"] == [])


def test_a_timeout_ends_the_script_on_the_agent(fleet: Fleet) -> None:
    answer = fleet.http(
        "POST", "/run", {"hosts": ["host-a"], "script": "sleep", "args": ["997"], "timeout": 1}
    )
    assert [each["state"] for each in results_of(answer)] == ["timeout"]
    assert not subprocess.run(["pgrep", "-f", "sleep 997"], capture_output=True, check=False).stdout


def test_a_client_that_hangs_up_leaves_a_run_that_goes_on(fleet: Fleet, gate: Path) -> None:
    payload = json.dumps({"hosts": ["host-a"], "script": "gate", "args": [str(gate)]}).encode()
    with socket.create_connection(("127.0.0.1", fleet.api_port)) as client:
        client.sendall(
            b"POST /run HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n%s" % (len(payload), payload)
        )
        record = running_record(fleet)
    assert fleet.api is not None
    eventually(
        lambda: not request_children_of(fleet.api.pid) if fleet.api else False,
        what="the request child has gone",
    )
    assert "completed" not in status(fleet, record["reqid"])
    gate.touch()
    done = wait_complete(fleet, record["reqid"])
    results = done["results"]
    assert isinstance(results, list)
    assert results[0]["state"] == "ok"


def test_killing_the_request_child_frees_the_lock_and_the_record_tells_the_truth(
    fleet: Fleet, gate: Path
) -> None:
    """The script lives on at the agent, which says busy; the record is completed by whoever asks."""
    payload = json.dumps({"hosts": ["host-a"], "script": "gate", "args": [str(gate)]}).encode()
    assert fleet.api is not None
    with socket.create_connection(("127.0.0.1", fleet.api_port)) as client:
        client.sendall(
            b"POST /run HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n%s" % (len(payload), payload)
        )
        record = running_record(fleet)
        for child in request_children_of(fleet.api.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
    eventually(lambda: fleet.cli_json("list-locks")["locks"] == [])
    again = fleet.http("POST", "/run", {"hosts": ["host-a"], "script": "gate", "args": [str(gate)]})
    assert [(each["exit"], each["state"], each["error"]) for each in results_of(again)] == [
        (-1, "busy", "script already running")
    ]
    found = status(fleet, record["reqid"])
    assert "completed" not in found
    assert found["state"] == "interrupted"  # nobody carries it; what is known of the host is true
    known = found["results"]
    assert isinstance(known, list)
    assert known[0]["state"] == "running"
    gate.touch()
    done = wait_complete(fleet, record["reqid"])
    results = done["results"]
    assert isinstance(results, list)
    assert (results[0]["state"], results[0]["stdout"]) == ("ok", "started\nfinished\n")


def test_killing_the_detached_carrier_loses_nothing(fleet: Fleet, gate: Path) -> None:
    answer = fleet.http(
        "POST", "/run", {"hosts": ["host-a"], "script": "gate", "args": [str(gate)], "async": True}
    )
    reqid = str(answer.json["reqid"])
    running_record(fleet)
    lock = fleet.state / "runs" / f"{reqid}.lock"
    holders = subprocess.run(["fuser", str(lock)], capture_output=True, text=True, check=False).stdout.split()
    pids = holders or _holders(lock)
    assert pids
    for pid in pids:
        os.kill(int(pid), signal.SIGKILL)
    gate.touch()
    done = wait_complete(fleet, reqid)
    results = done["results"]
    assert isinstance(results, list)
    assert results[0]["state"] == "ok"


def _holders(path: Path) -> list[str]:
    """Pids that have the file open."""
    return [str(pid) for pid in holders_of(lambda target: target == str(path))]


def test_killing_the_api_and_starting_it_again_finds_the_run(own_fleet: Fleet, gate: Path) -> None:
    own_fleet.start_api()
    start_run_ignoring(own_fleet, {"hosts": ["host-a"], "script": "gate", "args": [str(gate)]})
    record = running_record(own_fleet)
    assert own_fleet.api is not None
    own_fleet.api.kill()
    own_fleet.start_api()
    found = status(own_fleet, record["reqid"])
    assert "completed" not in found
    gate.touch()
    done = wait_complete(own_fleet, record["reqid"])
    results = done["results"]
    assert isinstance(results, list)
    assert results[0]["state"] == "ok"


def start_run_ignoring(fleet: Fleet, body: dict[str, object]) -> None:
    """POST /run in a thread whose connection may break."""

    def post() -> None:
        try:
            fleet.http("POST", "/run", body)
        except OSError:
            return

    threading.Thread(target=post, daemon=True).start()


def test_a_stopping_api_drains_and_what_is_left_goes_on_detached(own_fleet: Fleet, gate: Path) -> None:
    own_fleet.write_conf({"api_drain": 1})
    api = own_fleet.start_api()
    thread, answers = start_run(own_fleet, {"hosts": ["host-a"], "script": "gate", "args": [str(gate)]})
    record = running_record(own_fleet)
    assert api.stop(timeout_s=60) == 0
    thread.join(60)
    assert answers[0].status == 200
    assert next(each["state"] for each in results_of(answers[0])) in ("pending", "running")
    own_fleet.start_api()
    gate.touch()
    done = wait_complete(own_fleet, record["reqid"])
    results = done["results"]
    assert isinstance(results, list)
    assert results[0]["state"] == "ok"


def test_killing_the_agents_child_is_told_truly(own_fleet: Fleet, gate: Path) -> None:
    own_fleet.start_api()
    thread, answers = start_run(
        own_fleet, {"hosts": ["host-a"], "script": "gate", "args": [str(gate)], "read_timeout": 5}
    )
    record = running_record(own_fleet)
    agent = own_fleet.agents["host-a"].running
    assert agent is not None
    for child in children_of(agent.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    thread.join(60)
    assert answers[0].status == 200
    gate.touch()
    done = wait_complete(own_fleet, record["reqid"])
    results = done["results"]
    assert isinstance(results, list)
    assert results[0]["state"] in ("lost", "ok")
    body = {"hosts": ["host-a"], "script": "gate", "args": [str(gate)]}
    # busy for as long as the script still lives
    eventually(lambda: [each["state"] for each in results_of(own_fleet.http("POST", "/run", body))] == ["ok"])


def test_an_agent_that_restarts_during_a_run_says_lost_or_the_truth(own_fleet: Fleet, gate: Path) -> None:
    own_fleet.start_api()
    answer = own_fleet.http(
        "POST", "/run", {"hosts": ["host-a"], "script": "gate", "args": [str(gate)], "async": True}
    )
    running_record(own_fleet)
    agent = own_fleet.agents["host-a"]
    assert agent.running is not None
    agent.running.stop()
    own_fleet.start_agent(agent)
    gate.touch()
    done = wait_complete(own_fleet, answer.json["reqid"])
    results = done["results"]
    assert isinstance(results, list)
    assert results[0]["state"] in ("lost", "ok")


def test_a_dead_agent_is_unreachable_and_the_others_are_not(own_fleet: Fleet) -> None:
    own_fleet.add("host-c")
    own_fleet.start_api()
    dead = own_fleet.agents["host-c"].running
    assert dead is not None
    dead.kill()
    answer = own_fleet.http("POST", "/run", {"hosts": ["@all"], "script": "hello"})
    assert answer.json["hosts"] == ["host-a", "host-c"]
    assert [(each["host"], each["state"]) for each in results_of(answer)] == [
        ("host-a", "ok"),
        ("host-c", "unreachable"),
    ]
    assert own_fleet.cli("run", "host-c", "hello").returncode == 5
    assert own_fleet.cli("run", "--all", "hello").returncode == 1
    found = own_fleet.cli_json("ping", "--all")["results"]
    assert isinstance(found, list)
    assert [(each["host"], each["status"]) for each in found] == [("host-a", "ok"), ("host-c", "error")]


@pytest.mark.parametrize("sigchld", ["ignored", "blocked"])
@pytest.mark.parametrize("program", ["api", "cli", "agent"])
def test_sigchld_as_the_caller_left_it_changes_no_verdict(
    own_fleet: Fleet, sigchld: str, program: str
) -> None:
    """A denying hook denies and exit codes are right, also where SIGCHLD was ignored or blocked."""
    hook = own_fleet.home / "deny"
    hook.write_text('#!/bin/sh\n[ "$ENVEXEC_USERNAME" = good ] || exit 1\n')
    hook.chmod(0o755)
    own_fleet.write_conf({"auth_hook": hook})

    def spoil() -> None:
        if sigchld == "ignored":
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        else:
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])

    def start_spoiled(name: str, *words: object, log_path: Path) -> Running:
        made = Running.__new__(Running)
        made.program, made.log_path, made._offset = name, log_path, 0
        with log_path.open("wb") as log:
            made.process = subprocess.Popen(
                command(name, *words), env=environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True, preexec_fn=spoil,
            )  # fmt: skip
        return made

    agent = own_fleet.agents["host-a"]
    if program == "agent":
        assert agent.running is not None
        agent.running.stop()
        agent.running = start_spoiled(
            "ctrl-exec-agent", "--config", agent.conf, "serve", log_path=agent.home / "s.log"
        )
        agent.running.port()
    if program == "api":
        own_fleet.api = start_spoiled(
            "ctrl-exec-api", "--config", own_fleet.conf, log_path=own_fleet.home / "s.log"
        )
        own_fleet.api_port = own_fleet.api.port()
        assert (
            own_fleet.http("POST", "/run", {"hosts": ["host-a"], "script": "fail", "username": "bad"}).status
            == 403
        )
        answer = own_fleet.http("POST", "/run", {"hosts": ["host-a"], "script": "fail", "username": "good"})
        assert [each["exit"] for each in results_of(answer)] == [3]
        return
    for username, code in (("bad", 3), ("good", 1)):
        argv = command(
            "ctrl-exec", "--config", own_fleet.conf, "--username", username, "run", "host-a", "fail"
        )
        made = subprocess.run(
            argv,
            env=environment(),
            capture_output=True,
            preexec_fn=spoil if program == "cli" else None,
            timeout=60,
            check=False,
        )
        assert made.returncode == code, made.stderr


def test_reloading_under_load_drops_nothing(own_fleet: Fleet) -> None:
    api = own_fleet.start_api()
    statuses: list[int] = []

    def load() -> None:
        for _ in range(40):
            statuses.append(own_fleet.http("GET", "/health").status)

    threads = [threading.Thread(target=load) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(10):
        os.kill(api.pid, signal.SIGHUP)
        eventually(lambda: api.log().count("ACTION=reload") > 0)
    for thread in threads:
        thread.join(60)
    assert statuses == [200] * 120


def test_a_bad_configuration_at_reload_is_logged_and_the_old_one_kept(own_fleet: Fleet) -> None:
    api = own_fleet.start_api()
    own_fleet.write_conf({"api_drain": "soon"})
    os.kill(api.pid, signal.SIGHUP)
    api.wait_for(r"ACTION=reload.*api_drain")
    assert own_fleet.http("GET", "/health").status == 200


def test_the_scheduler_completes_what_nobody_asks_for(own_fleet: Fleet, gate: Path) -> None:
    own_fleet.start_api()
    answer = own_fleet.http(
        "POST", "/run", {"hosts": ["host-a"], "script": "gate", "args": [str(gate)], "async": True}
    )
    reqid = str(answer.json["reqid"])
    running_record(own_fleet)
    for pid in _holders(own_fleet.state / "runs" / f"{reqid}.lock"):
        os.kill(int(pid), signal.SIGKILL)
    assert own_fleet.api is not None
    own_fleet.api.stop()
    gate.touch()
    own_fleet.start_scheduler()
    record = own_fleet.state / "runs" / f"{reqid}.json"
    eventually(
        lambda: json.loads(record.read_text())["complete"],
        timeout_s=90,
        what="the scheduler completed the record",
    )


@pytest.mark.root
@pytest.mark.skipif(os.getuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_refuses_the_run_before_any_host_hears_of_it(own_fleet: Fleet) -> None:
    runs = own_fleet.state / "runs"
    runs.mkdir(exist_ok=True)
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(runs)], check=False)
    if made.returncode:
        pytest.skip("this machine does not let us mount")
    try:
        with contextlib.suppress(OSError), (runs / "filler").open("wb") as filler:
            filler.write(b"x" * 64 * 1024)
        own_fleet.start_api()
        answer = own_fleet.http("POST", "/run", {"hosts": ["host-a"], "script": "hello"})
        assert answer.status in (500, 503), answer.body
        assert answer.json["ok"] is False
        assert "Traceback" not in answer.body.decode()
        assert not list(own_fleet.agents["host-a"].home.glob("state/runs/*/*.json"))
        assert own_fleet.cli("run", "host-a", "hello").returncode == 1
        (runs / "filler").unlink()
        assert own_fleet.http("POST", "/run", {"hosts": ["host-a"], "script": "hello"}).status == 200
        assert own_fleet.cli_json("list-locks")["locks"] == []
    finally:
        if own_fleet.api is not None:
            own_fleet.api.stop()
        subprocess.run(["umount", "-l", str(runs)], check=True)
