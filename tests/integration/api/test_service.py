"""The API as a service: TLS, start and refusal to start, long requests, metrics, docs, pairing."""

from __future__ import annotations

import json
import re
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import ctrl_exec
from tests.integration.conftest import GATE
from tests.support.fleet import SCRIPTS, Answer, Fleet
from tests.support.pki import CLIENT, TestCA
from tests.support.plain_server import read_all
from tests.support.polling import eventually
from tests.support.processes import run


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    made = Fleet(
        tmp_path_factory.mktemp("fleet"),
        {"api_max_children": 4, "api_max_long": 1, "pairing_api_approve": "yes"},
    )
    try:
        made.add("host-a", "host-b", scripts=SCRIPTS | {"gate": GATE})
        made.start_api()
        yield made
    finally:
        made.close()


def figures(fleet: Fleet) -> dict[str, float]:
    """The samples of /metrics; every line has the form Prometheus reads."""
    answer = fleet.http("GET", "/metrics")
    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    found = {}
    for line in answer.body.decode().splitlines():
        if line.startswith("#"):
            assert re.fullmatch(r"# (HELP|TYPE) ctrl_exec_[a-z_]+ .+", line)
            continue
        name, number = line.rsplit(" ", 1)
        assert re.fullmatch(r'ctrl_exec_[a-z_]+(\{([a-z_]+="[^"]*",?)+\})?', name), line
        assert name not in found
        found[name] = float(number)
    return found


def test_metrics_count_what_happened(fleet: Fleet) -> None:
    before = figures(fleet)
    fleet.http("GET", "/health")
    fleet.http("GET", "/nowhere")
    fleet.http("POST", "/run", b"{")
    fleet.http("POST", "/run", {"hosts": ["host-a"], "script": "fail"})
    after = figures(fleet)

    def grown(name: str) -> float:
        return after.get(f"ctrl_exec_{name}", 0) - before.get(f"ctrl_exec_{name}", 0)

    assert grown('requests_total{route="health",status="200"}') == 1
    assert grown('requests_total{route="none",status="404"}') == 1
    assert grown('requests_total{route="run",status="400"}') == 1
    assert grown('requests_total{route="run",status="200"}') == 1
    assert grown("request_seconds_count") == 5  # the first look at the metrics was one, too
    assert grown('runs_total{mode="sync",state="completed"}') == 1
    assert grown('run_hosts_total{state="failed"}') == 1
    assert after["ctrl_exec_agents_registered"] == 2
    assert 364 < after['ctrl_exec_certificate_days_left{certificate="agents"}'] <= 365
    assert after['ctrl_exec_certificate_days_left{certificate="ca"}'] > 3600
    assert after["ctrl_exec_children_limit"] == 4
    assert after['ctrl_exec_children{state="working"}'] >= 1


def test_metrics_show_what_other_daemons_published(fleet: Fleet) -> None:
    directory = fleet.state / "metrics"
    directory.mkdir(exist_ok=True)
    (directory / "other.json").write_text('{"at": 1, "duties": {"purge": {"lag_s": 2.5, "junk": "x"}}}')
    (directory / "torn.json").write_text('{"at"')
    found = figures(fleet)
    assert found['ctrl_exec_duty_lag_s{program="other",duty="purge"}'] == 2.5
    assert found['ctrl_exec_daemon_published_seconds{program="other"}'] > 0


def test_long_runs_leave_room_for_short_requests(fleet: Fleet, gate: Path) -> None:
    """The second long run is let go of after its second: it goes on, and is answered as far as known."""
    answers: dict[str, Answer] = {}

    def start(host: str) -> threading.Thread:
        body = {"hosts": [host], "script": "gate", "args": [str(gate)]}
        thread = threading.Thread(target=lambda: answers.update({host: fleet.http("POST", "/run", body)}))
        thread.start()
        return thread

    first = start("host-a")
    eventually(lambda: figures(fleet)["ctrl_exec_long_requests"] == 1)
    second = start("host-b")
    second.join()
    assert "host-a" not in answers
    known: Any = answers["host-b"].json
    assert answers["host-b"].status == 200
    assert known["results"][0]["exit"] == -1
    assert known["results"][0]["state"] in ("pending", "running")
    assert fleet.http("POST", "/run", {"hosts": ["host-a"], "script": "hello"}).status == 200
    gate.touch()
    first.join()
    finished: Any = answers["host-a"].json
    assert finished["results"][0]["state"] == "ok"
    complete = eventually(
        lambda: shown if (shown := fleet.http("GET", f"/status/{known['reqid']}").json)["complete"] else None
    )
    assert complete["state"] == "completed"
    assert figures(fleet)["ctrl_exec_long_requests"] == 0


def test_waiting_for_a_lock_is_long_for_an_async_run_too(own_fleet: Fleet, gate: Path) -> None:
    """Who waits for a lock is no short request, and gives way where there are enough of them."""
    own_fleet.write_conf({"api_max_children": 4, "api_max_long": 1})
    own_fleet.start_api()
    wish: dict[str, object] = {"hosts": ["host-a"], "script": "gate", "args": [str(gate)], "async": True}
    assert own_fleet.http("POST", "/run", wish).status == 202
    answers: list[Answer] = []
    waiting = threading.Thread(
        target=lambda: answers.append(own_fleet.http("POST", "/run", wish | {"lock_wait": 60}))
    )
    waiting.start()
    eventually(lambda: figures(own_fleet)["ctrl_exec_long_requests"] == 1)
    refused = own_fleet.http("POST", "/run", wish | {"lock_wait": 60})
    assert (refused.status, refused.json["conflicts"]) == (409, ["host-a"])
    assert not answers
    assert own_fleet.http("GET", "/health").status == 200
    gate.touch()
    waiting.join(60)
    assert answers[0].status == 202
    assert figures(own_fleet)["ctrl_exec_long_requests"] == 0


def test_a_connection_is_kept_for_as_many_requests_as_the_settings_say(own_fleet: Fleet) -> None:
    """One by default; with `api_keepalive_requests` more, the last one closing."""

    def answered(count: int) -> list[str]:
        request = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
        with socket.create_connection(("127.0.0.1", own_fleet.api_port), 60) as sock:
            sock.sendall(request * count)
            text = read_all(sock).decode()
        return re.findall(r"^Connection: (.+?)\r$", text, re.MULTILINE)

    own_fleet.start_api()
    assert answered(2) == ["close"]
    assert own_fleet.api is not None
    own_fleet.api.stop()
    own_fleet.write_conf({"api_keepalive_requests": 3})
    own_fleet.start_api()
    assert answered(4) == ["keep-alive", "keep-alive", "close"]


def test_the_docs_page_loads_nothing_from_elsewhere(fleet: Fleet) -> None:
    page = fleet.http("GET", "/docs")
    text = page.body.decode()
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    policy = page.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self';" in policy
    assert "unsafe-eval" not in policy
    assert not re.search(r"(src|href)=\"(?!/docs/|data:,)", text)
    assert not re.search(r"<script(?![^>]*\bsrc=)", text)
    for name in re.findall(r'"(/docs/[^"]+)"', text):
        answer = fleet.http("GET", name)
        assert answer.status == 200
        assert answer.headers["Content-Type"].split(";")[0] in ("text/javascript", "text/css")
    assert b"RapiDoc" in fleet.http("GET", "/docs/rapidoc-min.js").body[:200]
    assert fleet.http("GET", "/docs/docs.html").status == 404
    assert fleet.http("GET", "/docs/..%2fopenapi.json").status == 404


def test_a_pairing_request_is_decided_over_the_api(fleet: Fleet) -> None:
    shown: Any = fleet.http("GET", "/agents").json
    assert [each["hostname"] for each in shown["agents"]] == ["host-a", "host-b"]
    assert "key" not in shown["agents"][0]
    agent, other = fleet.new_agent("host-c"), fleet.new_agent("host-d")
    with (
        fleet.pairing_mode(),
        fleet.request_pairing(agent) as request,
        fleet.request_pairing(other) as denied,
    ):
        waiting, refused = fleet.waiting_request("host-c"), fleet.waiting_request("host-d")
        listed: Any = fleet.http("GET", "/pairing").json
        assert {each["hostname"] for each in listed["requests"]} == {"host-c", "host-d"}
        path = f"/pairing/{waiting['id']}"
        wrong = f"{(int(waiting['code']) + 1) % 1_000_000:06d}"
        assert fleet.http("POST", f"{path}/approve", {"code": "12"}).status == 400
        assert fleet.http("POST", f"{path}/approve", {}).status == 400
        assert fleet.http("POST", f"{path}/approve", {"code": wrong}).status == 409
        assert fleet.http("POST", "/pairing/aaaaaaaaaaaaaaaa/approve", {"code": wrong}).status == 404
        assert fleet.http("POST", "/pairing/..%2f/deny").status == 404
        assert fleet.http("POST", f"{path}/deny", {"reason": "a\nb"}).status == 400
        replacing = fleet.new_agent("host-a-again")
        replacing.conf.write_text(
            replacing.conf.read_text().replace("hostname = host-a-again", "hostname = host-a")
        )
        with fleet.request_pairing(replacing):
            taken = fleet.waiting_request("host-a")
            answer = fleet.http("POST", f"/pairing/{taken['id']}/approve", {"code": taken["code"]})
            assert (answer.status, answer.json["error"]) == (409, "conflict")
        assert fleet.http("POST", f"{path}/approve", {"code": waiting["code"]}).status == 202
        assert request.process.wait(60) == 0, request.log()
        assert fleet.http("POST", f"/pairing/{refused['id']}/deny", {"reason": "not ours"}).status == 202
        assert denied.process.wait(60) != 0
        assert "not ours" in denied.log()
    names: Any = fleet.http("GET", "/agents").json
    assert "host-c" in [each["hostname"] for each in names["agents"]]
    assert "host-d" not in [each["hostname"] for each in names["agents"]]


def test_an_older_agent_is_not_approved_over_the_api(fleet: Fleet) -> None:
    """Its code protects against nobody in the middle: that takes a person and `approve --legacy`."""
    agent = fleet.new_agent("host-old")
    with fleet.pairing_mode(), fleet.request_pairing(agent, "--legacy") as request:
        waiting = fleet.waiting_request("host-old")
        refused = fleet.http("POST", f"/pairing/{waiting['id']}/approve", {"code": waiting["code"]})
        assert refused.status == 409
        assert "legacy" in str(refused.json["detail"])
        assert fleet.http("POST", f"/pairing/{waiting['id']}/deny").status == 202
        assert request.process.wait(60) != 0


def over_tls(port: int, context: ssl.SSLContext, path: str = "/health") -> bytes:
    with (
        socket.create_connection(("127.0.0.1", port), 60) as plain,
        context.wrap_socket(plain, server_hostname="localhost", suppress_ragged_eofs=False) as sock,
    ):
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        return read_all(sock)


def test_tls_with_client_certificates(tmp_path: Path) -> None:
    ca = TestCA(tmp_path / "ca")
    leaf, client = ca.issue("localhost"), ca.issue("client", usages=(CLIENT,))
    fleet = Fleet(
        tmp_path,
        {"api_cert": leaf.crt, "api_key": leaf.key_path, "api_client_ca": ca.path, "api_bind": "127.0.0.1"},
    )
    try:
        fleet.start_api()
        context = ssl.create_default_context(cafile=str(ca.path))
        with pytest.raises(OSError):
            over_tls(fleet.api_port, context)
        context.load_cert_chain(client.crt, client.key_path)
        assert over_tls(fleet.api_port, context).startswith(b"HTTP/1.1 200")
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        assert over_tls(fleet.api_port, context).startswith(b"HTTP/1.1 200")
        with socket.create_connection(("127.0.0.1", fleet.api_port), 60) as sock:
            sock.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
            assert read_all(sock).startswith(b"HTTP/1.1 400")
    finally:
        fleet.close()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"api_cert": "/nowhere/api.crt", "api_key": "/nowhere/api.key"}, "/nowhere/api.crt"),
        ({"api_cert": "/nowhere/api.crt"}, "api_key"),
        ({"api_port": "many"}, "api_port"),
        ({"no_such_key": "1"}, "no_such_key"),
    ],
)
def test_a_bad_configuration_starts_nothing(tmp_path: Path, changes: dict[str, str], words: str) -> None:
    conf = tmp_path / "ctrl-exec.conf"
    settings = {"etc_dir": tmp_path, "state_dir": tmp_path / "state", "api_port": 0, "log_target": "stderr"}
    conf.write_text("".join(f"{key} = {text}\n" for key, text in (settings | changes).items()))
    made = run("ctrl-exec-api", "--config", conf)
    assert made.returncode == 78
    assert words in made.stderr
    assert "Traceback" not in made.stderr


def test_its_command_line(tmp_path: Path) -> None:
    assert run("ctrl-exec-api", "--version").stdout == f"ctrl-exec-api {ctrl_exec.__version__}\n"
    assert "usage" in run("ctrl-exec-api", "--help").stdout
    made = run("ctrl-exec-api", "--nonsense")
    assert (made.returncode, "usage" in made.stderr) == (2, True)
    missing = run("ctrl-exec-api", "--config", tmp_path / "none")
    assert (missing.returncode, "no such file" in missing.stderr) == (78, True)


def test_a_port_in_use_is_said(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        conf = tmp_path / "ctrl-exec.conf"
        port = taken.getsockname()[1]
        conf.write_text(
            f"etc_dir = {tmp_path}\nstate_dir = {tmp_path}\napi_port = {port}\nlog_target = stderr\n"
        )
        made = run("ctrl-exec-api", "--config", conf)
    assert made.returncode == 1
    assert f"cannot listen on 127.0.0.1 port {port}" in made.stderr


def test_plain_http_beyond_this_machine_is_warned_about(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, {"api_bind": "0.0.0.0"})
    try:
        assert fleet.start_api().wait_for("WARNING ACTION=api-start .*plain HTTP beyond this machine")
        assert json.loads(fleet.http("GET", "/health").body)["ok"] is True
        assert fleet.api is not None
        assert fleet.api.stop() == 0
        assert "ACTION=api-stop" in fleet.api.log()
    finally:
        fleet.close()
