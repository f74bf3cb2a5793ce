"""The worked hooks in etc/, asked for real as the dispatcher asks them."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from ctrl_exec.common.hook import HookQuestion, HookSettings, ask_hook
from ctrl_exec.common.value import replace
from tests.support.processes import ROOT

QUESTION = HookQuestion(action="run", timestamp="2026-01-15T12:00:00Z", script="deploy", hosts=("web-01",))
Ask = Callable[..., int]


def install(directory: Path, name: str, **environment: str) -> Ask:
    hook = directory / "auth-hook"
    shutil.copy(ROOT / "etc" / f"auth-hook-{name}.example", hook)
    hook.chmod(0o755)
    settings = HookSettings(str(hook), timeout_s=30)
    settings = replace(settings, environment=(*settings.environment, *environment.items()))

    def ask(**facts: object) -> int:
        return ask_hook(settings, replace(QUESTION, **facts)).code

    return ask


@pytest.fixture
def token(tmp_path: Path) -> Ask:
    def line(secret: str, *fields: str) -> str:
        return " ".join((hashlib.sha256(secret.encode()).hexdigest(), *fields)) + "\n"

    (tmp_path / "auth-tokens").write_text(
        "# comment\n\n"
        + line("all", "alice", "*", "*", "*")
        + line("some", "bob", "run,ping", "deploy,db-*", "web-*,db-01")
        + line("two", "bob", "ping", "-", "a")
        + line("two", "bob", "ping", "-", "b")
        + line("look", "*", "api,own", "-", "-")
        + line("mine", "carol", "own")
        + line("bare", "dave").rstrip("\n")
    )
    return install(tmp_path, "token")


@pytest.mark.parametrize(
    ("facts", "code"),
    [
        ({}, 1),
        ({"token": "wrong"}, 2),
        ({"token": "all "}, 2),
        ({"token": "all\n"}, 2),
        ({"token": "all"}, 0),
        ({"token": "all", "username": "alice"}, 0),
        ({"token": "all", "username": "bob"}, 3),
        ({"token": "all", "username": "alic*"}, 3),
        ({"token": "all", "action": "api", "script": "", "hosts": ()}, 0),
        ({"token": "some"}, 0),
        ({"token": "some", "hosts": ("web-01", "web-02", "db-01")}, 0),
        ({"token": "some", "hosts": ("web-01", "db-02")}, 3),
        ({"token": "some", "hosts": ("mail",)}, 3),
        ({"token": "some", "hosts": ("*",)}, 3),
        ({"token": "some", "script": "db-dump"}, 0),
        ({"token": "some", "script": "reboot"}, 3),
        ({"token": "some", "action": "ping", "script": ""}, 0),
        ({"token": "some", "action": "status", "script": ""}, 3),
        ({"token": "two", "action": "ping", "script": "", "hosts": ("a",)}, 0),
        ({"token": "two", "action": "ping", "script": "", "hosts": ("b",)}, 0),
        ({"token": "two", "action": "ping", "script": "", "hosts": ("a", "b")}, 3),
        ({"token": "look", "action": "api", "script": "", "hosts": ()}, 0),
        ({"token": "look", "action": "status", "hosts": (), "username": "x", "submitter": "x"}, 3),
        ({"token": "mine", "action": "status", "hosts": (), "submitter": "carol"}, 0),
        ({"token": "mine", "action": "status", "hosts": (), "submitter": "alice"}, 3),
        ({"token": "mine", "action": "status", "hosts": (), "submitter": ""}, 3),
        ({"token": "bare"}, 3),
        ({"token": "#"}, 2),
        ({"token": "$(touch /tmp/x)`id`; exit 0"}, 2),
        ({"token": "-n"}, 2),
        ({"token": "%s"}, 2),
    ],
)
def test_token_file(token: Ask, facts, code: int) -> None:
    """Every column is a limit, and nothing in a question is code."""
    assert token(**facts) == code


def test_token_file_that_is_not_there(tmp_path: Path) -> None:
    """Without its file the hook denies."""
    assert install(tmp_path, "token")(token="all") == 1


def test_token_hook_with_what_is_too_large(tmp_path: Path, token: Ask) -> None:
    """Hosts that are only on stdin can't be judged by this hook: it denies."""
    settings = HookSettings(str(tmp_path / "auth-hook"), passes_large_on_stdin=True)
    hosts = tuple(f"web-{number:06d}" for number in range(20_000))
    assert ask_hook(settings, replace(QUESTION, token="all", hosts=hosts)).code == 1


def hashed(password: str, *options: str) -> str:
    made = subprocess.run(
        ["openssl", "passwd", *options, "-stdin"],
        input=password + "\n",
        capture_output=True,
        text=True,
        check=True,
    )
    return made.stdout.strip()


@pytest.fixture
def htpasswd(tmp_path: Path) -> Ask:
    users = {
        "alice": hashed("correct horse", "-6"),
        "bob": hashed("pä$$`word", "-5"),
        "carol": hashed("apache", "-apr1"),
        "rounds": hashed("many", "-6", "-salt", "rounds=6000$abcdefgh"),
        "monitor": hashed("look", "-6"),
        "plain": "plain",
        "sha": "{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g=",
        "empty": "",
    }
    (tmp_path / "auth-users").write_text("".join(f"{name}:{stored}\n" for name, stored in users.items()))
    return install(tmp_path, "htpasswd")


@pytest.mark.parametrize(
    ("username", "password", "code"),
    [
        ("alice", "correct horse", 0),
        ("bob", "pä$$`word", 0),
        ("carol", "apache", 0),
        ("rounds", "many", 0),
        ("alice", "correct horse2", 2),
        ("alice", "correct horse\nx", 2),
        ("alice", "correct", 2),
        ("alice", "", 1),
        ("", "correct horse", 1),
        ("nobody", "correct horse", 2),
        ("plain", "plain", 2),
        ("sha", "password", 2),
        ("empty", "x", 2),
        ("alice:$6$x", "x", 2),
        (".*", "correct horse", 2),
        ("-x", "correct horse", 2),
        ("alice\n", "correct horse", 2),
        ("alice", "x" * 1000, 2),
        ("monitor", "look", 3),
    ],
)
def test_htpasswd(htpasswd: Ask, username: str, password: str, code: int) -> None:
    """The right password of a user with a good hash, and nothing else."""
    assert htpasswd(username=username, token=password) == code


def test_htpasswd_readers(htpasswd: Ask) -> None:
    """Readers may look."""
    for action in ("ping", "status", "api"):
        assert htpasswd(username="monitor", token="look", action=action) == 0


def test_htpasswd_without_its_file(tmp_path: Path) -> None:
    """Not set up: denied."""
    assert install(tmp_path, "htpasswd")(username="alice", token="x") == 1


class Service:
    """A web service that answers with the status it is told, and remembers what it was asked."""

    def __init__(self) -> None:
        self.status = 200
        self.headers: dict[str, str] = {}
        self.asked: list[tuple[dict[str, object], str | None]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def handle_question(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.asked.append((json.loads(body), self.headers.get("Authorization")))
                self.send_response(outer.status)
                for name, text in outer.headers.items():
                    self.send_header(name, text)
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_POST = do_GET = handle_question  # noqa: N815 - names of the standard library

            def log_message(self, *_: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/check"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05})

    def __enter__(self) -> Service:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def service() -> Iterator[Service]:
    with Service() as made:
        yield made


@pytest.mark.parametrize(
    ("status", "code"),
    [(200, 0), (204, 0), (401, 2), (403, 3), (201, 1), (404, 1), (500, 1), (302, 1), (307, 1)],
)
def test_rest(tmp_path: Path, service: Service, status: int, code: int) -> None:
    """The status is the verdict; a redirect is not followed, the question arrives whole."""
    service.status = status
    service.headers = {"Location": service.url + "/elsewhere"} if status in (302, 307) else {}
    ask = install(tmp_path, "rest", AUTH_URL=service.url, AUTH_SECRET="s3", http_proxy="http://127.0.0.1:1")
    assert ask(username="alice", token="t0ken") == code
    [(question, authorization)] = service.asked
    assert question["username"] == "alice"
    assert question["token"] == "t0ken"
    assert question["hosts"] == ["web-01"]
    assert authorization == "Bearer s3"


@pytest.mark.parametrize(
    "url", ["http://auth.example.net/", "ftp://127.0.0.2/", "", "nonsense", "http://127.0.0.1:1/"]
)
def test_rest_that_can_not_be_asked(tmp_path: Path, url: str) -> None:
    """No TLS off loopback, no service, no URL: denied."""
    assert install(tmp_path, "rest", AUTH_URL=url)(token="x") == 1
    assert install(tmp_path, "rest")(token="x") == 1
