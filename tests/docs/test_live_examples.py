"""The programs in docs/examples, against a live API whose connections break; the page in a real browser."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from tests.support.browser import CHROMIUM, Page
from tests.support.fleet import Fleet
from tests.support.polling import eventually
from tests.support.processes import ROOT, environment

EXAMPLES = ROOT / "docs" / "examples"
TOKEN = "token-of-the-docs"
COUNT = (
    '#!/bin/sh\necho "one $2"\nwhile [ ! -e "$1" ]; do sleep 0.05; done\necho two >&2\nprintf "three\\n\\n"\n'
)
SEEN = ["web-01: one x y", "web-01: two", "web-01: three"]


def lasting_port(first: int) -> int:
    """A port that nobody is given while its server is being started again: below those that the kernel chooses."""
    for port in range(first + os.getpid() % 5000, first + 6000):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return port
    raise AssertionError


@pytest.fixture(scope="module")
def web_port() -> int:
    return lasting_port(20_000)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, web_port: int) -> Iterator[Fleet]:
    home = tmp_path_factory.mktemp("examples")
    hook = home / "auth-hook"
    hook.write_text(f'#!/bin/sh\n[ "$ENVEXEC_TOKEN" = {TOKEN} ] || exit 2\n')
    hook.chmod(0o755)
    settings = {"auth_hook": hook, "api_auth_default": "deny", "api_origins": f"http://127.0.0.1:{web_port}"}
    made = Fleet(home, settings=settings | {"api_drain": 1, "api_port": lasting_port(26_000)})
    try:
        agent = made.new_agent("web-01", scripts={"count": COUNT, "fail": "#!/bin/sh\necho no >&2\nexit 3\n"})
        made.pair(agent)
        made.start_agent(agent)
        made.start_api()
        yield made
    finally:
        made.close()


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Path]:
    """The file that the script waits for; it is made at the end whatever happened."""
    path = tmp_path / "gate-open"
    yield path
    path.touch()


def command(fleet: Fleet, kind: str, *words: object) -> list[str]:
    if kind == "sh":
        return ["sh", str(EXAMPLES / "follow-run.sh"), *map(str, words)]
    url = f"http://127.0.0.1:{fleet.api_port}"
    return [sys.executable, "-W", "error", str(EXAMPLES / "watch.py"), url, TOKEN, *map(str, words)]


def shell(fleet: Fleet) -> dict[str, str]:
    return environment({"URL": f"http://127.0.0.1:{fleet.api_port}", "TOKEN": TOKEN})


def restart(fleet: Fleet) -> None:
    """Kill the API with all its children; on the same port there is another one at once."""
    assert fleet.api is not None
    children = Path(f"/proc/{fleet.api.pid}/task/{fleet.api.pid}/children").read_text().split()
    for pid in [fleet.api.pid, *map(int, children)]:
        os.kill(pid, signal.SIGKILL)
    fleet.api.process.wait(60)
    fleet.start_api()


@pytest.mark.parametrize("kind", ["sh", "py"])
@pytest.mark.skipif(not (shutil.which("curl") and shutil.which("jq")), reason="curl and jq are not installed")
def test_a_run_is_shown_live_also_over_a_restart(fleet: Fleet, gate: Path, tmp_path: Path, kind: str) -> None:
    """Each line once, with its host, as it comes; the API is killed in the middle."""
    shown = tmp_path / "shown"
    with shown.open("wb") as output:
        words = command(fleet, kind, "web-01", "count", gate, "x y")
        process = subprocess.Popen(words, env=shell(fleet), stdout=output, stderr=subprocess.PIPE)
    try:
        eventually(lambda: shown.read_text().splitlines() == SEEN[:1], what="the first line")
        restart(fleet)
        gate.touch()
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 0, errors
    lines = [line for line in shown.read_text().splitlines() if line]
    assert sorted(lines) == sorted(SEEN)


@pytest.mark.parametrize("kind", ["sh", "py"])
@pytest.mark.skipif(not (shutil.which("curl") and shutil.which("jq")), reason="curl and jq are not installed")
def test_a_failed_script_is_told_by_the_exit_code(fleet: Fleet, kind: str) -> None:
    words = command(fleet, kind, "web-01", "fail")
    ended = subprocess.run(words, env=shell(fleet), capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout) == (1, "web-01: no\n"), ended.stderr


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Nobody reads it."""


@pytest.fixture
def page_url(web_port: int) -> Iterator[str]:
    """Where docs/examples is served from, another origin than the API's."""
    with ThreadingHTTPServer(("127.0.0.1", web_port), partial(Quiet, directory=str(EXAMPLES))) as server:
        server.daemon_threads = True
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{web_port}/watch.html"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.skipif(not CHROMIUM, reason="chromium is not installed")
def test_the_page_shows_a_run_live_also_over_a_restart(
    fleet: Fleet, gate: Path, tmp_path: Path, page_url: str
) -> None:
    """In a real browser, from another origin, with a token in a header."""
    body = {"hosts": ["web-01"], "script": "count", "args": [str(gate), "x y"], "async": True}
    answer = fleet.http("POST", "/run", body, headers={"Authorization": f"Bearer {TOKEN}"})
    with Page(page_url, tmp_path / "profile") as page:
        eventually(lambda: page.evaluate("document.readyState == 'complete' && !!window.reqid"))
        fill = f"url.value = 'http://127.0.0.1:{fleet.api_port}'; reqid.value = '{answer.json['reqid']}'; token.value = "
        page.evaluate(fill + "'wrong'; document.querySelector('button').click()")
        eventually(lambda: page.evaluate("state.textContent") == "bad credentials")
        page.evaluate(fill + f"'{TOKEN}'; document.querySelector('button').click()")
        eventually(lambda: page.evaluate("output.textContent") == "web-01: one x y\n")
        restart(fleet)
        gate.touch()
        eventually(lambda: page.evaluate("state.textContent") == "completed")
        shown = page.evaluate("output.textContent")
    assert sorted(line for line in shown.splitlines() if line) == sorted(SEEN)
