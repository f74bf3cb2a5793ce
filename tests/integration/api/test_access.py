"""Who gets what from the API, in the order a client can observe; against the real process."""

from __future__ import annotations

import base64
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ctrl_exec.api.routes import PUBLIC, ROUTES, ApiRoute
from tests.support.fleet import Answer, Fleet
from tests.support.polling import eventually

# a token decides: none or a wrong one is bad credentials, "low" too little, "broken" dies by a signal
HOOK = """#!/bin/sh
cat > "$HOME_OF_TEST/stdin.json"
echo "$ENVEXEC_ACTION" >> "$HOME_OF_TEST/asked"
env > "$HOME_OF_TEST/environment"
case "$ENVEXEC_TOKEN" in
good) exit 0;; low) exit 3;; no) exit 1;; odd) exit 7;; broken) kill -9 $$;; loud) head -c 1048576 /dev/zero; exit 0;;
*) exit 2;;
esac
"""
_numbers = itertools.count(1)


def hook_in(directory: Path) -> Path:
    path = directory / "hook"
    path.write_text(HOOK.replace("$HOME_OF_TEST", str(directory)))
    path.chmod(0o755)
    return path


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """An API with a hook, behind a trusted proxy on loopback, with every route on."""
    home = tmp_path_factory.mktemp("guarded")
    fleet = Fleet(
        home,
        {
            "auth_hook": hook_in(home), "api_auth_default": None, "api_trusted_proxies": "127.0.0.0/8",
            "pairing_api_approve": "yes",
        },
    )  # fmt: skip
    try:
        fleet.start_api()
        yield fleet
    finally:
        fleet.close()


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """An API that allows everything, and pages of one origin."""
    fleet = Fleet(
        tmp_path_factory.mktemp("open"), {"api_origins": "https://ops.example", "api_names": "api.example"}
    )
    try:
        fleet.start_api()
        yield fleet
    finally:
        fleet.close()


def ask(
    fleet: Fleet, method: str, path: str, body: object = None, *, token: str = "", **headers: str
) -> Answer:
    """One request from an address of its own, so that failures are not counted together."""
    number = next(_numbers)
    sent = {"X-Forwarded-For": f"198.18.{number // 250}.{number % 250 + 1}", **headers}
    if token:
        sent["Authorization"] = f"Bearer {token}"
    return fleet.http(method, path, body, headers=sent)


def path_of(route: ApiRoute) -> str:
    path = route.pattern.replace("{reqid}", "a1b2c3d4e5f60718").replace("{id}", "a1b2c3d4e5f60718")
    return path.replace("{file}", "docs.js")


def body_of(route: ApiRoute) -> object:
    """A body that decodes."""
    known = {"hosts": ["nobody"], "script": "hello", "code": "123456"}
    found = {key: known[key] for key in route.keys if key in known}
    return found if route.method == "POST" else None


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.name)
def test_every_route_asks_for_credentials(guarded: Fleet, route: ApiRoute) -> None:
    def status(token: str) -> tuple[int, object]:
        answer = ask(guarded, route.method, path_of(route), body_of(route), token=token)
        found = answer.json.get("code") if answer.headers["Content-Type"] == "application/json" else None
        return answer.status, found

    if route.authorised_by == PUBLIC:
        assert status("")[0] == 200
        return
    assert status("") == (403, 2)
    assert status("wrong") == (403, 2)
    # a run that one may not see does not exist
    hidden = (404, None) if route.name in ("status", "run-output", "run-cancel") else None
    assert status("low") == (hidden or (403, 3))
    assert status("no") == (hidden or (403, 1))
    assert status("good")[0] in (200, 404)


def questions(fleet: Fleet) -> list[str]:
    """The actions the hook was asked for since the last look."""
    path = fleet.home / "asked"
    found = path.read_text().split() if path.exists() else []
    path.unlink(missing_ok=True)
    return found


@pytest.mark.parametrize("token", ["good", "low", ""])
@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.name)
def test_every_request_is_authorised_exactly_once(guarded: Fleet, route: ApiRoute, token: str) -> None:
    """Whatever it comes to: a hook may count, charge or lock out by what it is asked."""
    questions(guarded)
    ask(guarded, route.method, path_of(route), body_of(route), token=token)
    assert len(questions(guarded)) == (0 if route.authorised_by == PUBLIC else 1)


@pytest.mark.parametrize(
    ("method", "path", "body", "count"),
    [
        ("GET", "/nowhere", None, 1),
        ("DELETE", "/run", None, 1),
        ("OPTIONS", "/run", None, 1),
        ("OPTIONS", "/nowhere", None, 1),
        ("HEAD", "/health", None, 1),
        ("POST", "/run", b"{", 0),
        ("POST", "/run", {"hosts": ["a"], "script": "b", "more": 1}, 0),
        ("POST", "/ping", {"hosts": ["@all", "!nobody"]}, 1),
        ("GET", "/status/x", None, 1),
    ],
)
def test_odd_requests_are_authorised_once_too(
    guarded: Fleet, method: str, path: str, body: object, count: int
) -> None:
    """What can't be decoded is not asked about; what is not there is, for that too is knowledge."""
    questions(guarded)
    ask(guarded, method, path, body, token="good")
    assert len(questions(guarded)) == count


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/nowhere"), ("PUT", "/run"), ("TRACE", "/"), ("OPTIONS", "/run"), ("OPTIONS", "/x")],
)
def test_what_there_is_not_is_told_only_to_those_who_may_ask(guarded: Fleet, method: str, path: str) -> None:
    assert ask(guarded, method, path).status == 403
    expected = {"/nowhere": 404, "/x": 404, "/run": 405 if method == "PUT" else 204, "/": 405}[path]
    answer = ask(guarded, method, path, token="good")
    assert answer.status == expected
    if expected in (204, 405):
        assert "OPTIONS" in answer.headers["Allow"]


@pytest.mark.parametrize("token", ["odd", "broken"])
def test_a_hook_that_ends_oddly_denies(guarded: Fleet, token: str) -> None:
    answer = ask(guarded, "GET", "/health", token=token)
    assert (answer.status, answer.json["code"], answer.json["error"]) == (403, 1, "denied")


def test_a_hook_may_print_what_it_likes(guarded: Fleet) -> None:
    assert ask(guarded, "GET", "/health", token="loud").json["ok"] is True


def test_syntax_is_judged_before_the_hook_and_names_after_it(guarded: Fleet) -> None:
    assert ask(guarded, "POST", "/run", b"{", token="wrong").status == 400
    assert ask(guarded, "POST", "/run", {"hosts": ["nobody"], "script": "a b"}, token="wrong").status == 400
    assert ask(guarded, "POST", "/run", {"hosts": ["nobody"], "script": "a"}, token="wrong").status == 403
    answer = ask(guarded, "POST", "/run", {"hosts": ["nobody", "Web-9"], "script": "a"}, token="good")
    assert (answer.status, answer.json["error"]) == (404, "unknown agent")
    assert answer.json["agents"] == ["nobody", "web-9"]


def told(fleet: Fleet) -> tuple[dict[str, Any], dict[str, str]]:
    """What the hook was told last: on stdin, and in its environment."""
    lines = (fleet.home / "environment").read_text().splitlines()
    environment = dict(line.split("=", 1) for line in lines if "=" in line)
    return json.loads((fleet.home / "stdin.json").read_text()), environment


def test_the_hook_is_told_everything(guarded: Fleet) -> None:
    body = {
        "hosts": ["nobody"],
        "script": "hello",
        "args": ["a b", "c"],
        "username": "alice",
        "token": "good",
    }
    answer = guarded.http("POST", "/run", body, headers={"X-Forwarded-For": "198.51.100.7"})
    assert answer.status == 404
    stdin, environment = told(guarded)
    expected = {
        "action": "run", "script": "hello", "hosts": ["nobody"], "args": ["a b", "c"], "username": "alice",
        "token": "good", "source_ip": "198.51.100.7", "via": "http", "auth": "claimed", "dispatcher": "test",
    }  # fmt: skip
    assert {key: stdin[key] for key in expected} == expected
    assert json.loads(environment["ENVEXEC_ARGS_JSON"]) == ["a b", "c"]
    assert environment["ENVEXEC_SOURCE_IP"] == "198.51.100.7"
    assert environment["ENVEXEC_ACTION"] == "run"


LARGE = {"hosts": ["nobody"], "script": "hello", "args": ["x" * 100_000, "y" * 100_000]}


def test_what_the_hooks_environment_cannot_hold_is_a_413_that_names_it(guarded: Fleet) -> None:
    """Half a question would be answered wrongly: the hook is not asked at all."""
    questions(guarded)
    answer = ask(guarded, "POST", "/run", LARGE, token="good")
    assert (answer.status, answer.json["error"]) == (413, "payload too large")
    assert "ENVEXEC_ARGS" in str(answer.json["detail"])
    assert questions(guarded) == []
    made = guarded.cli("run", "nobody", "hello", "--", *LARGE["args"], env={"ENVEXEC_TOKEN": "good"})
    assert made.returncode == 2
    assert "ENVEXEC_ARGS" in made.stderr
    assert guarded.records() == []


def test_with_auth_hook_large_the_hook_finds_it_on_stdin(tmp_path: Path) -> None:
    fleet = Fleet(
        tmp_path, {"auth_hook": hook_in(tmp_path), "api_auth_default": None, "auth_hook_large": "stdin"}
    )
    try:
        fleet.start_api()
        assert ask(fleet, "POST", "/run", LARGE, token="good").status == 404
        stdin, environment = told(fleet)
        assert stdin["args"] == LARGE["args"]
        assert environment["ENVEXEC_OMITTED"] == "ENVEXEC_ARGS,ENVEXEC_ARGS_JSON"
        assert "ENVEXEC_ARGS" not in environment
        assert ask(fleet, "POST", "/run", LARGE, token="wrong").status == 403
    finally:
        fleet.close()


@pytest.mark.parametrize(
    ("method", "path", "action"),
    [
        ("GET", "/", "api"),
        ("GET", "/nowhere", "api"),
        ("GET", "/discovery", "ping"),
        ("GET", "/status/a1b2c3d4", "status"),
        ("GET", "/status/x", "status"),
        ("GET", "/metrics", "api"),
        ("GET", "/agents", "pairing"),
        ("GET", "/openapi-live.json", "api"),
    ],
)
def test_each_endpoint_has_its_action(guarded: Fleet, method: str, path: str, action: str) -> None:
    ask(guarded, method, path, token="good")
    assert told(guarded)[0]["action"] == action


def basic(username: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()


@pytest.mark.parametrize(
    ("headers", "body", "username"),
    [
        ({"Authorization": "Bearer good"}, {}, ""),
        ({"Authorization": "bearer good"}, {"username": "alice"}, "alice"),
        ({"Authorization": basic("alice", "good")}, {}, "alice"),
        ({"Authorization": basic("alice", "good")}, {"username": "alice", "token": "good"}, "alice"),
        ({}, {"username": "alice", "token": "good"}, "alice"),
        ({}, {"token": "good"}, ""),
    ],
)
def test_credentials_come_in_the_body_or_the_header(
    guarded: Fleet, headers: dict[str, str], body: dict[str, str], username: str
) -> None:
    assert ask(guarded, "POST", "/discovery", body, **headers).status == 200
    stdin = told(guarded)[0]
    assert (stdin["username"], stdin["token"]) == (username, "good")
    assert stdin["auth"] == ("claimed" if username else "none")


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({"Authorization": "Bearer good"}, {"token": "other"}),
        ({"Authorization": basic("alice", "good")}, {"username": "bob"}),
        ({"Authorization": "Bearer"}, {}),
        ({"Authorization": "Bearer a b"}, {}),
        ({"Authorization": "Digest x"}, {}),
        ({"Authorization": "Basic !!!"}, {}),
        ({"Authorization": "Basic " + base64.b64encode(b"nocolon").decode()}, {}),
        ({"Authorization": "Basic " + base64.b64encode(b"\xff:x").decode()}, {}),
        ({}, {"token": "a\nb"}),
        ({}, {"username": 7}),
        ({}, {"token": None}),
    ],
)
def test_bad_or_contradicting_credentials_are_a_bad_request(
    guarded: Fleet, headers: dict[str, str], body: dict[str, object]
) -> None:
    assert ask(guarded, "POST", "/discovery", body, **headers).status == 400


def test_too_many_bad_credentials_close_an_address_for_its_minute(guarded: Fleet) -> None:
    def knock(address: str, token: str) -> Answer:
        return guarded.http(
            "GET", "/health", headers={"X-Forwarded-For": address, "Authorization": f"Bearer {token}"}
        )

    def closes() -> bool:
        statuses = [knock("203.0.113.5", "wrong").status for _ in range(11)]
        assert set(statuses) <= {403, 429}
        return statuses[-1] == 429

    eventually(closes)  # again when the minute has just ended in between
    closed = knock("203.0.113.5", "good")
    if closed.status == 429:
        assert 0 < int(closed.headers["Retry-After"]) <= 60
        assert closed.json["error"] == "too many requests"
    assert knock("203.0.113.6", "good").status == 200
    assert knock("203.0.113.7", "low").status == 403


def test_a_forged_forwarding_header_is_believed_only_from_a_proxy(opened: Fleet, guarded: Fleet) -> None:
    guarded.http(
        "GET", "/", headers={"X-Forwarded-For": "6.6.6.6, 192.0.2.1", "Authorization": "Bearer good"}
    )
    assert told(guarded)[0]["source_ip"] == "192.0.2.1"  # the last hop that is not trusted
    guarded.http("GET", "/", headers={"X-Forwarded-For": "junk", "Authorization": "Bearer good"})
    assert told(guarded)[0]["source_ip"] == "127.0.0.1"


BAD_RUNS: list[tuple[object, str]] = [
    (b"", "JSON body is missing"),
    (b"nonsense", "not JSON"),
    (b"\xff", "UTF-8"),
    (b"[1]", "expected a JSON object"),
    (b'{"hosts": ["a"], "hosts": ["b"], "script": "x"}', "twice"),
    (b"[" * 100_000, ""),
    (b'{"script": "x", "hosts": NaN}', "NaN"),
    ({"script": "x"}, "hosts"),
    ({"hosts": [], "script": "x"}, "hosts"),
    ({"hosts": "a", "script": "x"}, "hosts"),
    ({"hosts": [1], "script": "x"}, "hosts"),
    ({"hosts": ["-a"], "script": "x"}, "-a"),
    ({"hosts": ["../etc"], "script": "x"}, "../etc"),
    ({"hosts": ["a:0"], "script": "x"}, "port"),
    ({"hosts": ["a"]}, "script"),
    ({"hosts": ["a"], "script": "a/b"}, "script"),
    ({"hosts": ["a"], "script": "x" * 65}, "script"),
    ({"hosts": ["a"], "script": "x", "args": "y"}, "args"),
    ({"hosts": ["a"], "script": "x", "args": [1]}, "args"),
    ({"hosts": ["a"], "script": "x", "args": ["\0"]}, "args"),
    ({"hosts": ["a"], "script": "x", "args": ["y"] * 1025}, "args"),
    ({"hosts": ["a"], "script": "x", "args": ["y" * 131_072]}, "args"),
    ({"hosts": ["a"], "script": "x", "args": ["y" * 131_000] * 5}, "args"),
    ({"hosts": ["a"], "script": "x", "timeout": "5"}, "timeout"),
    ({"hosts": ["a"], "script": "x", "timeout": 0}, "timeout"),
    ({"hosts": ["a"], "script": "x", "timeout": True}, "timeout"),
    ({"hosts": ["a"], "script": "x", "timeout": 1.5}, "timeout"),
    ({"hosts": ["a"], "script": "x", "lock_wait": 3601}, "lock_wait"),
    ({"hosts": ["a"], "script": "x", "read_timeout": -1}, "read_timeout"),
    ({"hosts": ["a"], "script": "x", "async": "yes"}, "async"),
    ({"hosts": ["a"], "script": "x", "async": None}, "async"),
    ({"hosts": ["a"], "script": "x", "encoding": "latin-1"}, "encoding"),
    ({"hosts": ["a"], "script": "x", "env": {"LD_PRELOAD": "x"}, "shell": True}, "'env', 'shell'"),
    ({"hosts": ["a"], "script": "x", "batch": {"size": 1, "hosts": 1}}, "batch"),
]


@pytest.mark.parametrize(("body", "names"), BAD_RUNS, ids=range(len(BAD_RUNS)))
def test_a_bad_run_is_a_400_that_names_what_was_wrong(opened: Fleet, body: object, names: str) -> None:
    answer = opened.http("POST", "/run", body if body != b"" else None)
    assert (answer.status, answer.json["error"]) == (400, "bad request")
    assert names in str(answer.json["detail"])
    assert not opened.records()


def test_any_content_type_that_holds_json_is_taken(opened: Fleet) -> None:
    for media in ("application/x-www-form-urlencoded", "text/plain", "application/json; charset=utf-8"):
        assert opened.http("POST", "/discovery", b"{}", headers={"Content-Type": media}).status == 200


def test_an_encoded_body_is_refused(opened: Fleet) -> None:
    assert opened.http("POST", "/discovery", b"{}", headers={"Content-Encoding": "gzip"}).status == 415
    assert opened.http("POST", "/discovery", b"{}", headers={"Content-Encoding": "identity"}).status == 200


@pytest.mark.parametrize(
    "origin",
    ["https://evil.example", "null", "http://127.0.0.1", "https://ops.example.evil", "http://ops.example"],
)
def test_a_page_of_another_origin_is_refused_whatever_it_asks(opened: Fleet, origin: str) -> None:
    for method, path in (("GET", "/health"), ("POST", "/run"), ("OPTIONS", "/run"), ("GET", "/nowhere")):
        answer = opened.http(
            method, path, headers={"Origin": origin, "Access-Control-Request-Method": "POST"}
        )
        assert answer.status == 403
        assert "Access-Control-Allow-Origin" not in answer.headers


def test_pages_of_our_own_and_of_configured_origins_are_served(opened: Fleet) -> None:
    own = f"http://127.0.0.1:{opened.api_port}"
    answer = opened.http("GET", "/health", headers={"Origin": own})
    assert answer.status == 200
    assert "Access-Control-Allow-Origin" not in answer.headers
    for path in ("/health", "/nowhere"):
        answer = opened.http("GET", path, headers={"Origin": "https://ops.example"})
        assert answer.headers["Access-Control-Allow-Origin"] == "https://ops.example"
        assert answer.headers["Vary"] == "Origin"
        assert "Access-Control-Allow-Credentials" not in answer.headers
    preflight = opened.http(
        "OPTIONS", "/run", headers={"Origin": "https://ops.example", "Access-Control-Request-Method": "POST"}
    )
    assert preflight.status == 204
    assert "POST" in preflight.headers["Access-Control-Allow-Methods"]
    assert "Authorization" in preflight.headers["Access-Control-Allow-Headers"]


def test_a_page_must_declare_its_json(opened: Fleet) -> None:
    headers = {"Origin": "https://ops.example", "Content-Type": "text/plain"}
    assert opened.http("POST", "/discovery", b"{}", headers=headers).status == 415
    headers["Content-Type"] = "application/json"
    assert opened.http("POST", "/discovery", b"{}", headers=headers).status == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("rebound.example", 403),
        ("rebound.example:80", 403),
        ("127.0.0.1", 200),
        ("127.0.0.1:1", 200),
        ("localhost", 200),
        ("API.example:99", 200),
        ("[::1]:5", 403),
    ],
)
def test_an_open_api_answers_only_to_its_own_names(opened: Fleet, host: str, status: int) -> None:
    assert opened.http("GET", "/health", headers={"Host": host}).status == status


def test_options_and_head(opened: Fleet) -> None:
    assert opened.http("OPTIONS", "/status/a1b2c3d4").headers["Allow"] == "GET, HEAD, OPTIONS"
    with socket.create_connection(("127.0.0.1", opened.api_port), 60) as sock:
        sock.sendall(b"OPTIONS * HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert sock.recv(20).startswith(b"HTTP/1.1 204")
    assert opened.http("HEAD", "/health").body == b""


def test_without_hook_and_default_nothing_is_open(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, {"api_auth_default": None})
    try:
        fleet.start_api()
        for method, path, body in (
            ("GET", "/", None), ("GET", "/health", None), ("GET", "/nowhere", None), ("PUT", "/run", b"x"),
            ("POST", "/run", b"{"), ("GET", "/docs", None), ("OPTIONS", "/run", None),
        ):  # fmt: skip
            answer = fleet.http(method, path, body)
            assert (answer.status, answer.json["error"], answer.json["code"]) == (403, "denied", 1)
            assert "no auth hook configured" in str(answer.json["detail"])
        # a reload opens it, a bad one changes nothing
        fleet.write_conf({"api_auth_default": "allow"})
        assert fleet.api is not None
        fleet.api.process.send_signal(signal.SIGHUP)
        eventually(lambda: fleet.http("GET", "/health").status == 200)
        fleet.write_conf({"api_auth_default": "perhaps"})
        fleet.api.process.send_signal(signal.SIGHUP)
        fleet.api.wait_for("ACTION=reload ERROR=.*api_auth_default")
        assert fleet.http("GET", "/health").status == 200
    finally:
        fleet.close()


@pytest.mark.parametrize("hook", ["missing", "not executable", "hanging"])
def test_a_hook_that_cannot_answer_denies(tmp_path: Path, hook: str) -> None:
    path = tmp_path / "hook"
    if hook != "missing":
        path.write_text("#!/bin/sh\nexec sleep 1000\n")
        path.chmod(0o755 if hook == "hanging" else 0o644)
    fleet = Fleet(tmp_path, {"auth_hook": path, "auth_hook_timeout": 1, "auth_deny_generic": "yes"})
    try:
        fleet.start_api()
        answer = fleet.http("GET", "/health")
        assert answer.status == 403
        assert answer.json == {"ok": False, "error": "forbidden", "detail": "forbidden"}
    finally:
        fleet.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user to be")
@pytest.mark.root
def test_on_the_unix_socket_the_kernel_says_who_it_is(tmp_path: Path) -> None:
    open_to_all = Path(tempfile.mkdtemp(prefix="ctrl-exec-"))  # the other user can't enter tmp_path
    try:
        open_to_all.chmod(0o755)
        path = open_to_all / "api.sock"
        fleet = Fleet(tmp_path, {"auth_hook": hook_in(tmp_path), "api_socket": path})
        try:
            fleet.start_api()
            path.chmod(0o666)
            for uid, username, status in (
                (0, "", 200),
                (0, "alice", 200),
                (65534, "", 200),
                (65534, "alice", 403),
                (65534, "nobody", 200),
            ):
                assert over_socket(path, uid, username) == status
                if status == 200:
                    stdin = told(fleet)[0]
                    own = "root" if uid == 0 else "nobody"
                    assert stdin["username"] == (username or own)
                    assert (stdin["via"], stdin["source_ip"]) == ("socket", "127.0.0.1")
                    assert stdin["auth"] == ("claimed" if username == "alice" else "peer")
        finally:
            fleet.close()
    finally:
        shutil.rmtree(open_to_all)


def over_socket(path: Path, uid: int, username: str) -> int:
    """The status a user of that uid gets for claiming that name."""
    code = (
        "import json, os, socket, sys; path, uid, name = sys.argv[1:]; os.setuid(int(uid))\n"
        "body = json.dumps({'token': 'good'} | ({'username': name} if name else {})).encode()\n"
        "sock = socket.socket(socket.AF_UNIX); sock.connect(path)\n"
        "sock.sendall(b'POST /discovery HTTP/1.1\\r\\nHost: x\\r\\nContent-Length: %d\\r\\n\\r\\n' % len(body) + body)\n"
        "print(sock.makefile('rb').readline().split()[1].decode())"
    )
    made = subprocess.run(
        [sys.executable, "-I", "-c", code, str(path), str(uid), username],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    return int(made.stdout)
