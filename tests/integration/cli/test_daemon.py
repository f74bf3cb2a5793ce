"""The command line of a user who may not read the dispatcher's key: the API's Unix socket does the work."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import GATE
from tests.support.fleet import SCRIPTS, Fleet
from tests.support.polling import eventually
from tests.support.processes import command, environment, needs_other_user

pytestmark = [pytest.mark.root, needs_other_user]
NOBODY = 65534
HOOK = """\
#!/bin/sh
[ "$ENVEXEC_AUTH $ENVEXEC_VIA $ENVEXEC_USERNAME" = "peer socket nobody" ] || exit 1
[ "$ENVEXEC_TOKEN" = wrong ] && exit 2
exit 0
"""


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    """One agent and an API with a socket, below a directory that anybody may enter but nobody read keys in."""
    if os.geteuid() != 0:
        pytest.skip("needs root to become somebody else")
    home = Path(tempfile.mkdtemp(prefix="ctrl-exec-"))
    home.chmod(0o755)
    hook = home / "hook"
    hook.write_text(HOOK)
    hook.chmod(0o755)
    made = Fleet(
        home, settings={"api_socket": home / "api.sock", "auth_hook": hook, "api_auth_default": "deny"}
    )
    try:
        agent = made.new_agent("web-01", scripts=SCRIPTS | {"gate": GATE})
        made.enrol(agent)
        made.start_agent(agent)
        made.start_api()
        (home / "etc").chmod(0o755)
        made.conf.chmod(0o644)
        (home / "api.sock").chmod(0o666)
        yield made
    finally:
        made.close()
        shutil.rmtree(home, ignore_errors=True)


def start(fleet: Fleet, *words: object, **variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command("ctrl-exec", "--config", fleet.conf, *words), env=environment(variables), user=NOBODY, group=NOBODY,
        extra_groups=[], cwd="/", stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def cli(fleet: Fleet, *words: object, **variables: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `ctrl-exec` run by `nobody`."""
    with start(fleet, *words, **variables) as process:
        stdout, stderr = process.communicate(timeout=60)
    return process.returncode, stdout, stderr


def document(fleet: Fleet, *words: object, **variables: str) -> tuple[int, dict[str, Any]]:
    code, stdout, _ = cli(fleet, "--json", *words, **variables)
    return code, json.loads(stdout)


def test_run_ping_discovery_and_status(fleet: Fleet) -> None:
    """The same words and documents as with the key; the hook sees a proven name."""
    assert pwd.getpwuid(NOBODY).pw_name == "nobody"
    code, stdout, stderr = cli(fleet, "run", "web-01", "hello", "--", "a b")
    assert (code, stderr) == (0, "")
    assert stdout.startswith("==> web-01  [OK  exit:0  ")
    assert stdout.endswith("]\nhello a b\n")
    code, found = document(fleet, "run", "@all", "fail")
    assert (code, found["hosts"], found["results"][0]["exit"]) == (1, ["web-01"], 3)
    code, shown = document(fleet, "status", found["reqid"])
    assert (code, shown["state"], shown["script"]) == (1, "completed", "fail")
    assert cli(fleet, "ping", "web-01")[1].splitlines()[2].startswith("web-01  ok")
    code, found = document(fleet, "discovery")
    assert (code, found["hosts"]["web-01"]["status"]) == (0, "ok")
    assert document(fleet, "discovery", "web-01")[0] == 0


def test_async_runs_and_options_arrive(fleet: Fleet) -> None:
    """The id alone; base64; a script bounded on its agent."""
    code, stdout, stderr = cli(fleet, "run", "web-01", "hello", "--async")
    assert code == 0
    assert f"ctrl-exec status {stdout.strip()}" in stderr
    code, found = document(
        fleet, "run", "web-01", "hello", "--encoding", "base64", "--lock-wait", "20", "--", "x"
    )
    assert found["results"][0]["stdout"] == "aGVsbG8geAo="
    code, found = document(fleet, "run", "web-01", "sleep", "--timeout", "1")
    assert (code, found["results"][0]["state"]) == (1, "timeout")


@pytest.mark.parametrize(
    ("words", "code", "error"),
    [
        (["run", "nobody", "hello"], 1, "unknown agent"),
        (["ping", "web-01:0"], 2, "bad request"),
        (["run", "web-01", "hello", "--token", "wrong"], 3, "bad credentials"),
        (["run", "web-01", "hello", "--username", "alice"], 3, "forbidden"),
        (["status", "0123456789abcdef"], 1, "not found"),
        (["status", "zz"], 2, "bad request"),
    ],
)
def test_refusals_keep_their_exit_codes(fleet: Fleet, words: list[str], code: int, error: str) -> None:
    """An answer of the API is the error it stands for."""
    given, found = document(fleet, *words)
    assert (given, found["error"]) == (code, error)


def test_a_run_is_let_go_and_goes_on(fleet: Fleet, gate: Path) -> None:
    """Ctrl-C closes the connection; the API's child hands the run to a carrier. Meanwhile it is locked."""
    with start(fleet, "run", "web-01", "gate", "--", gate) as process:

        def is_held() -> bool:
            return fleet.cli_json("list-locks")["locks"] == [{"host": "web-01", "script": "gate"}]

        eventually(is_held, what="the run has begun")
        code, found = document(fleet, "run", "web-01", "gate")
        assert (code, found["error"], found["conflicts"]) == (4, "locked", ["web-01"])
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "let go of the run, it goes on" in stderr
    assert fleet.cli_json("list-locks")["locks"]
    gate.touch()
    eventually(lambda: not fleet.cli_json("list-locks")["locks"], what="the run has ended")


def test_with_a_port_or_without_a_socket_the_key_is_needed(fleet: Fleet) -> None:
    """The API knows the registry's ports only; then the reason is the key, not a mystery."""
    code, _, stderr = cli(fleet, "ping", "web-01", "--port", "7443")
    assert code == 1
    assert "cannot be read" in stderr or "Permission denied" in stderr


@contextlib.contextmanager
def answering(path: Path, reply: bytes) -> Iterator[None]:
    """A socket on which somebody answers every request with these bytes."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        path.chmod(0o666)
        listener.listen()

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    stream, _ = listener.accept()
                    with stream:
                        stream.recv(65536)
                        stream.sendall(reply)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(60)


def whole(status: int, body: bytes) -> bytes:
    """One HTTP answer."""
    return b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body)


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (b"", "is not ctrl-exec-api"),
        (b"SSH-2.0\r\n\r\n", "is not ctrl-exec-api"),
        (whole(200, b"abc"), "not JSON"),
        (whole(200, b"[]"), "not an object"),
        (whole(503, b'{"error": "service unavailable", "detail": "come back"}'), "come back"),
        (whole(429, b'{"error": "too many requests", "detail": "slowly"}'), "slowly"),
        (whole(409, b'{"error": "conflict", "detail": "clash"}'), "clash"),
        (whole(500, b'{"error": "fire drill"}'), "the API answered 500: fire drill"),
    ],
)
def test_a_socket_that_answers_nonsense(fleet: Fleet, reply: bytes, error: str) -> None:
    """One document with a named error, exit 1, never a traceback."""
    path = fleet.home / "odd.sock"
    conf = fleet.home / "etc" / "odd.conf"
    conf.write_text(fleet.conf.read_text().replace("api.sock", "odd.sock"))
    conf.chmod(0o644)
    path.unlink(missing_ok=True)
    with answering(path, reply):
        code, found = document(fleet, "--config", conf, "ping", "web-01")
    assert (code, found["ok"]) == (1, False)
    assert error in str(found)


def test_an_api_that_is_not_there_is_named(fleet: Fleet) -> None:
    """A socket that nobody serves any more."""
    path = fleet.home / "dead.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
    path.chmod(0o666)
    conf = fleet.home / "etc" / "dead.conf"
    conf.write_text(fleet.conf.read_text().replace("api.sock", "dead.sock"))
    conf.chmod(0o644)
    code, found = document(fleet, "--config", conf, "ping", "web-01")
    assert code == 1
    assert "is ctrl-exec-api running?" in found["detail"]
