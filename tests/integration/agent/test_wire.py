"""The endpoints of port 7443, key by key, as dispatchers of ours and of the older kind use them."""

from __future__ import annotations

import base64
import json
import os
import re

import pytest

from tests.support.agents import AgentHost, receive, send
from tests.support.pki import TestCA

REQID = "0123456789abcdef"
EXPIRY = re.compile(r"[A-Z][a-z]{2} [ 1-3][0-9] [0-9]{2}:[0-9]{2}:[0-9]{2} [0-9]{4} GMT")


def test_ping_tells_name_version_expiry_and_features(agent: AgentHost):
    answer = agent.ask("POST", "/ping", {"reqid": REQID, "unknown": [1]})
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    found = answer.json()
    assert EXPIRY.fullmatch(found.pop("expiry"))
    assert isinstance(found.pop("version"), str)
    assert found == {
        "status": "ok", "host": "host-a", "staged": False, "reqid": REQID,
        "features": ["async", "stream", "cancel", "timeout", "keepalive", "result", "base64", "secrets"],
    }  # fmt: skip


def test_capabilities_list_scripts_tags_and_sidecars(host: AgentHost):
    path = host.script("deploy", "true", "timeout=90")
    schema = {"description": "Deploy", "version": "7", "arguments": {"type": "object"}}
    (path.parent / "deploy.schema.json").write_text(json.dumps(schema))
    (host.script("plain", "true").parent / "plain.schema.json").write_text("[]")
    host.allow("gone", "/no/such/script")
    host.configure("[tags]\nenv = production\nrole = web\n")
    with host.start():
        found = host.ask("GET", "/capabilities").json()
        assert found["status"] == "ok"
        assert found["host"] == "host-a"
        assert found["tags"] == {"env": "production", "role": "web"}
        assert found["scripts"] == [
            {
                "name": "deploy",
                "path": str(path),
                "executable": True,
                "schema": schema,
                "schema_version": "7",
            },
            {"name": "gone", "path": "/no/such/script", "executable": False},
            {"name": "plain", "path": str(path.parent / "plain"), "executable": True},
        ]
        assert "plain.schema.json: is no JSON object" in host.log()


def test_a_run_gives_output_exit_code_and_ids(host: AgentHost):
    host.script("hello", 'echo "out $1"; echo err >&2; exit 3')
    with host.start():
        found = host.run("hello", "world", reqid=REQID)
        assert found == {
            "script": "hello",
            "exit": 3,
            "stdout": "out world\n",
            "stderr": "err\n",
            "reqid": REQID,
        }
        assert re.search(rf"ACTION=run-start .*PEER=127\S+ REQID={REQID} SCRIPT=hello", host.log())
        assert re.search(rf"ACTION=run DISPATCHER=main EXIT=3 .*REQID={REQID} SCRIPT=hello", host.log())


def test_the_script_reads_the_whole_request_as_json(host: AgentHost):
    host.script("cat", "cat")
    with host.start():
        found = host.run("cat", "ä b", "c\n", reqid=REQID, username="alice", token="s3cret")
        told = json.loads(found["stdout"])
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", told.pop("timestamp"))
        assert told.pop("peer_ip").startswith("127.")
        assert told == {
            "script": "cat", "args": ["ä b", "c\n"], "reqid": REQID, "username": "alice",
            "token": "s3cret", "dispatcher": "main",
        }  # fmt: skip
        assert "s3cret" not in host.log()
        spooled = (host.state / f"runs/main/{REQID}.json").read_text()
        assert "s3cret" not in spooled.replace(json.dumps(found["stdout"]), "")


def test_only_a_few_variables_of_the_agent_reach_a_script(host: AgentHost):
    host.script("env", "env")
    host.start({"LD_BIND_NOW": "1", "TZ": "UTC", "SECRET": "x", "LC_ALL": "C.UTF-8"})
    variables = dict(line.split("=", 1) for line in host.run("env")["stdout"].splitlines())
    variables.pop("_", None)
    assert set(variables) <= {"PATH", "HOME", "LANG", "LC_ALL", "TZ", "TERM", "USER", "LOGNAME", "PWD"}
    assert variables["PATH"] == "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    assert variables["TZ"] == "UTC"


def test_what_is_not_in_the_allowlist_is_refused_with_200(host: AgentHost):
    host.script("hello", "true")
    with host.start():
        for name in ("other", "../hello", "/bin/sh", "hello\n", "", "hello.sh", "x" * 65, None, 5, ["hello"]):
            answer = host.ask("POST", "/run", {"script": name, "args": [], "reqid": REQID})
            assert answer.status == 200
            found = answer.json()
            assert (found["exit"], found["error"]) == (-1, "script not permitted")
            assert found["reqid"] == REQID
        assert "ACTION=deny" in host.log()
        assert not list((host.state / "runs").glob("main/*"))


def test_a_script_that_moved_out_of_script_dirs_is_refused_at_execution(host: AgentHost):
    inside = host.script("hello", "echo inside")
    host.configure(f"script_dirs = {host.scripts_dir}\n")
    with host.start():
        assert host.run("hello")["stdout"] == "inside\n"
        inside.unlink()
        inside.symlink_to("/bin/true")
        assert host.run("hello")["error"] == "script not permitted"
        assert "outside script_dirs" in host.log()


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"reqid": "../../etc/passwd"}, "not a request id"),
        ({"reqid": None}, "not a request id"),
        ({"args": "x"}, "args"),
        ({"args": [1]}, "args"),
        ({"args": ["a\0b"]}, "NUL"),
        ({"args": ["\ud800"]}, "UTF-8"),
        ({"args": ["x"] * 1025}, "1025 arguments"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": "5"}, "timeout"),
        ({"async": 1}, "async"),
        ({"encoding": "latin-1"}, "encoding"),
        ({"username": 5}, "username"),
    ],
)
def test_a_malformed_run_is_a_400_that_names_the_fault(
    agent: AgentHost, change: dict[str, object], word: str
):
    answer = agent.ask("POST", "/run", {"script": "hello", "args": [], "reqid": REQID} | change)
    assert answer.status == 400
    assert word in answer.json()["detail"]
    assert not list((agent.state / "runs").glob("main/*"))


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b'{"a":1,"a":2}', b'{"a":NaN}', b"[" * 100_000])
def test_a_body_that_is_no_object_is_a_400(agent: AgentHost, body: bytes):
    assert agent.ask("POST", "/run", body).status == 400


def test_unknown_paths_and_methods(agent: AgentHost):
    assert agent.ask("GET", "/").status == 404
    assert agent.ask("GET", "/run/../ping").status == 404
    assert agent.ask("POST", "/cancel", {"reqid": REQID}).status == 404
    answer = agent.ask("GET", "/run")
    assert answer.status == 405
    assert "POST" in answer.headers["allow"]
    assert agent.ask("GET", "/capabilities").status == 200


def test_output_is_text_by_default_and_exact_in_base64(host: AgentHost):
    host.script("bytes", r"printf '\377\000\101'; printf '\200' >&2")
    with host.start():
        plain = host.run("bytes")
        assert (plain["stdout"], plain["stderr"]) == ("\ufffd\0A", "\ufffd")
        assert "encoding" not in plain
        exact = host.run("bytes", encoding="base64", reqid=REQID)
        assert base64.b64decode(exact["stdout"]) == b"\xff\0A"
        assert base64.b64decode(exact["stderr"]) == b"\x80"
        assert exact["encoding"] == "base64"
        assert host.result(REQID).json()["stdout"] == exact["stdout"]


def test_output_beyond_max_output_is_counted_and_dropped(host: AgentHost):
    host.script("much", "head -c 3000000 /dev/zero | tr '\\0' x; head -c 5 /dev/zero | tr '\\0' y >&2")
    host.configure("max_output = 1M\n")
    with host.start():
        found = host.run("much", reqid=REQID)
        assert found["stdout"] == "x" * (1 << 20)
        assert found["truncated"] == {"stdout": 3_000_000 - (1 << 20), "stderr": 0}
        assert host.result(REQID).json()["truncated"] == found["truncated"]


def test_fifty_megabytes_pass_through_whole(host: AgentHost):
    host.script(
        "both", "for i in 1 2 3 4 5; do head -c 10485760 /dev/zero; head -c 10485760 /dev/zero >&2; done"
    )
    host.configure("max_output = 64M\n")
    with host.start():
        found = host.run("both", encoding="base64")
        assert len(base64.b64decode(found["stdout"])) == 50 << 20
        assert len(base64.b64decode(found["stderr"])) == 50 << 20


def test_the_time_limit_of_request_and_entry(host: AgentHost):
    host.script("slow", "echo begun; sleep 60", "timeout=2")
    host.script("free", "echo begun; sleep 60")
    with host.start():
        found = host.run("free", timeout=1, reqid=REQID)
        assert found["exit"] == -1
        assert found["error"] == "script timed out after 1s"
        assert found["timed_out"] is True
        assert found["stdout"] == "begun\n"
        assert host.result(REQID).json()["timed_out"] is True
        assert host.run("slow", timeout=3600)["error"] == "script timed out after 2s"


@pytest.mark.parametrize("count", [30, pytest.param(200, marks=pytest.mark.long)])
def test_scripts_that_ignore_a_megabyte_of_stdin_lose_no_result(host: AgentHost, count: int):
    host.script("deaf", "echo done; exit 7", "lock=no")
    with host.start():
        name = "u" * ((1 << 20) - 400)
        with host.connect() as connection:
            for _ in range(count):
                body = {"script": "deaf", "args": [], "reqid": os.urandom(8).hex(), "username": name}
                send(connection, "POST", "/run", body)
                found = receive(connection).json()
                assert (found["exit"], found["stdout"]) == (7, "done\n")


def test_one_connection_serves_many_requests_in_1_1_and_one_in_1_0(agent: AgentHost):
    with agent.connect() as connection:
        for _ in range(5):
            send(connection, "POST", "/ping", {"reqid": REQID})
            answer = receive(connection)
            assert (answer.status, answer.headers["connection"]) == (200, "keep-alive")
        send(connection, "POST", "/ping", {"reqid": REQID}, headers="Connection: close\r\n")
        assert receive(connection).headers["connection"] == "close"
        assert connection.recv(1) == b""
    with agent.connect() as connection:
        send(connection, "POST", "/ping", {"reqid": REQID}, version="1.0")
        assert receive(connection).headers["connection"] == "close"
        assert connection.recv(1) == b""


def test_an_older_dispatcher_is_served_as_it_asks(tmp_path, ca):
    """HTTP/1.0 and 1.1 with the headers of LWP, no key this protocol added, an RSA-4096 identity."""
    host = AgentHost(tmp_path, ca, rsa_bits=2048)
    host.script("hello", 'echo "hi $1"')
    older = ca.issue("ctrl-exec", usages=(), rsa_bits=4096)
    host.trust(f"0x{older.serial.upper()}", "old-dispatcher")
    headers = (
        "TE: deflate,gzip;q=0.3\r\nConnection: TE, close\r\nUser-Agent: libwww-perl/6.68\r\n"
        "Content-Type: application/json\r\n"
    )
    body = {"script": "hello", "args": ["old"], "reqid": "a1b2c3d4", "username": "root", "token": ""}
    with host.start():
        for version in ("1.0", "1.1"):
            with host.connect(older) as connection:
                send(connection, "POST", "/run", body, version=version, headers=headers)
                answer = receive(connection)
                assert answer.status == 200
                assert answer.json() == {
                    "script": "hello", "exit": 0, "stdout": "hi old\n", "stderr": "", "reqid": "a1b2c3d4",
                }  # fmt: skip
                assert connection.recv(1) == b""
        with host.connect(older) as connection:
            send(connection, "GET", "/capabilities", None, headers=headers)
            assert receive(connection).json()["scripts"][0]["name"] == "hello"
        with host.connect(older) as connection:
            connection.sendall(b"POST /ping HTTP/1.0\r\nContent-Length: 20\r\n\r\n" + b'{"reqid":"a1b2c3d4"}')
            assert receive(connection).json()["status"] == "ok"
        assert "DISPATCHER=old-dispatcher" in host.log()


def test_the_parser_and_its_limits_are_those_of_the_api(agent: AgentHost):
    for raw, status in (
        (b"GET /capabilities HTTP/1.1\r\n\r\n", 400),
        (b"GET /capabilities HTTP/1.1\nHost: a\n\n", 400),
        (b"POST /run HTTP/1.1\r\nHost: a\r\nContent-Length: 9999999\r\n\r\n", 413),
        (b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 100 + b"\r\n", 431),
        (b"GET / HTTP/3.0\r\nHost: a\r\n\r\n", 505),
    ):
        with agent.connect() as connection:
            connection.sendall(raw)
            assert receive(connection).status == status


def test_a_chunked_body_is_read(host: AgentHost):
    host.script("hello", "echo hi")
    body = json.dumps({"script": "hello", "args": [], "reqid": REQID}).encode()
    with host.start(), host.connect() as connection:
        connection.sendall(b"POST /run HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        connection.sendall(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
        assert receive(connection).json()["stdout"] == "hi\n"


def test_a_certificate_authority_of_rsa_keys_works(tmp_path):
    authority = TestCA(tmp_path / "pki", rsa_bits=2048)
    host = AgentHost(tmp_path / "host", authority, rsa_bits=2048)
    with host.start():
        assert host.ask("POST", "/ping", {"reqid": REQID}).status == 200
