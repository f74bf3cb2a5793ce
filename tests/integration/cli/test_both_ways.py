"""The command line over the daemon's socket and without it: the same words, documents, exit codes and hooks.

And the choice between them: nothing is ever asked twice, another way is taken only when nothing was asked.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import re
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.cli.instance import Instance
from tests.integration.cli.test_terminal import Terminal
from tests.support.polling import eventually
from tests.support.processes import Running, command, environment, run

HOOK = """\
#!/bin/sh
echo "$ENVEXEC_ACTION $ENVEXEC_SCRIPT $ENVEXEC_HOSTS $ENVEXEC_USERNAME $ENVEXEC_SOURCE_IP $ENVEXEC_VIA $ENVEXEC_AUTH" >>"$0.seen"
[ "$ENVEXEC_TOKEN" = wrong ] && exit 2
[ "$ENVEXEC_TOKEN" = weak ] && exit 3
exit 0
"""


class Ways:
    """One dispatcher with its daemon, asked by a configuration with its socket and by one without."""

    def __init__(self, shared: Instance) -> None:
        self.shared = shared
        etc = shared.home / "etc"
        self.hook, self.socket = etc / "hook", shared.home / "api.sock"
        self.hook.write_text(HOOK)
        self.hook.chmod(0o755)
        base = shared.conf.read_text() + f"auth_hook = {self.hook}\n"
        self.here, self.daemon = etc / "here.conf", etc / "daemon.conf"
        self.here.write_text(base)
        self.daemon.write_text(base + f"api_socket = {self.socket}\n")
        self.api = Running("ctrl-exec-api", "--config", self.daemon, log_path=shared.home / "api.log")
        self.api.port()

    def conf(self, name: str, **changes: object) -> Path:
        """A configuration with these settings after those of the daemon."""
        path = self.shared.home / "etc" / name
        lines = [line for line in self.daemon.read_text().splitlines() if line.split(" = ")[0] not in changes]
        path.write_text("\n".join([*lines, *(f"{key} = {each}" for key, each in changes.items())]) + "\n")
        return path

    def seen(self) -> list[str]:
        """What the hook was asked so far; empties the list."""
        path = Path(f"{self.hook}.seen")
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return lines

    def asked(self, host: str, script: str) -> int:
        """How often the host was asked to run the script."""
        sent = self.shared.fleet.requests(host)
        return sum(1 for each in sent if (each.get("body") or {}).get("script") == script)


@pytest.fixture(scope="module")
def ways(shared: Instance) -> Iterator[Ways]:
    made = Ways(shared)
    try:
        yield made
    finally:
        made.api.__exit__()


def ask(conf: Path, *words: object, **variables: str) -> subprocess.CompletedProcess[str]:
    return run("ctrl-exec", "--config", conf, *words, env=variables)


def plain(text: str) -> str:
    """Without what differs from run to run, and without log lines."""
    text = re.sub(r"\b[0-9a-f]{16}\b", "ID", re.sub(r"\b\d+ms *", "MS ", text))
    text = re.sub(r"--+", "--", re.sub(r"RTT +", "RTT ", text))
    text = re.sub(r'"(created|completed)": \d+', r'"\1": T', text)
    return "".join(line for line in text.splitlines(keepends=True) if " ACTION=" not in line)


@pytest.mark.parametrize(
    "words",
    [
        ["run", "bad-01", "web-01", "deploy", "--", "a b", "ä"],
        ["run", "n[01-11]", "deploy"],
        ["run", "@role=web", "!web-02", "deploy", "--json"],
        ["run", "web-01", "bad-01", "deploy", "--follow", "--quiet"],
        ["run", "web-01", "bad-01", "--batch", "1", "--max-failures", "1", "deploy", "--json"],
        ["run", "web-01", "deploy", "--async", "--json"],
        ["run", "web-01", "deploy", "--encoding", "base64", "--json"],
        ["run", "slow", "wait", "--read-timeout", "1", "--json"],
        ["run", "web-01", "deploy", "--", *["x"] * 1025],
        ["run", "web-01", "deploy", "--", b"\xff"],
        ["run", "web-01", "../x", "--json"],
        ["run", "wbe-01", "deploy", "--json"],
        ["run", "web-01", "deploy", "--token", "wrong", "--json"],
        ["ping", "web-01", "liar"],
        ["ping", "nobody", "--token", "weak", "--json"],
        ["discovery", "web-01", "bad-01", "--json"],
        ["status", "0123456789abcdef", "--json"],
        ["output", "-f", "0123456789abcdef"],
        ["cancel", "0123456789abcdef", "--json"],
        ["wait", "zz", "--json"],
        ["runs", "--host", "Not/A/Host", "--json"],
        ["runs", "--cursor", "x", "--json"],
    ],
    ids=lambda words: " ".join(map(str, words))[:60],
)  # fmt: skip
def test_both_ways_say_the_same(ways: Ways, words: list[str]) -> None:
    """Exit code, stdout, stderr; and the hook is asked the same, but for the way in."""
    ways.seen()
    found = []
    for conf, via, auth in ((ways.here, "cli", "claimed"), (ways.daemon, "socket", "peer")):
        ended = ask(conf, *words, USER=pwd.getpwuid(os.geteuid()).pw_name)
        questions = [line.replace(f" {via} {auth}", "") for line in ways.seen()]
        stdout = plain(ended.stdout)
        # hosts speak at once: only the order of one host's lines is fixed
        lines = sorted(stdout.splitlines()) if "--follow" in words else stdout.splitlines()
        found.append((ended.returncode, lines, plain(ended.stderr), questions))
        if "slow" in words:
            ask(conf, "cancel", json.loads(ended.stdout)["reqid"])
            eventually(lambda: not busy(ways, "wait"), what="it has ended")
            ways.seen()
    assert found[0] == found[1]
    assert "Traceback" not in found[0][2]


def busy(ways: Ways, script: str) -> bool:
    listed = json.loads(ask(ways.here, "list-locks", "--json").stdout)["locks"]
    return any(each["script"] == script for each in listed)


def test_a_run_is_followed_awaited_and_listed_by_either(ways: Ways) -> None:
    """Begun on one way, its end seen on both; what is listed is the same."""
    for begins, looks in ((ways.here, ways.daemon), (ways.daemon, ways.here)):
        reqid = ask(begins, "run", "bad-01", "web-01", "listed", "--async", "-q").stdout.strip()
        for conf in (looks, begins):
            assert ask(conf, "wait", reqid).returncode == 1
            followed = ask(conf, "output", "-f", reqid)
            assert followed.returncode == 1
            assert sorted(followed.stdout.splitlines()[:2]) == ["bad-01: out", "web-01: hello"]
            assert plain(followed.stderr).splitlines()[:2] == ["bad-01: wrong", "bad-01: worse"]
            assert "hello" in ask(conf, "output", reqid).stdout
            over = json.loads(ask(conf, "cancel", reqid, "--json").stdout)
            assert (over["complete"], [each["ended"] for each in over["hosts"]]) == (True, [True, True])
    pages = []
    for conf in (ways.here, ways.daemon):
        first = json.loads(ask(conf, "runs", "--script", "listed", "--limit", "1", "--json").stdout)
        rest = json.loads(
            ask(conf, "runs", "--script", "listed", "--cursor", first["cursor"], "--json").stdout
        )
        pages.append((first["runs"], rest["runs"]))
        assert (len(first["runs"]), len(rest["runs"])) == (1, 1)
        assert "listed" in ask(conf, "runs", "--script", "listed", "--since", "1h").stdout
    assert pages[0] == pages[1]


@pytest.mark.parametrize("way", ["here", "daemon"])
def test_waiting_has_an_end_and_cancel_ends_the_run(ways: Ways, way: str) -> None:
    """124 when the time is up; then nothing of it runs, and waiting says so at once."""
    conf = getattr(ways, way)
    reqid = ask(conf, "run", "slow", f"long-{way}", "--async", "-q").stdout.strip()
    waited = ask(conf, "wait", reqid, "--timeout", "0.5")
    assert waited.returncode == 124
    assert f"ctrl-exec wait {reqid}" in waited.stderr
    assert "running" in waited.stdout
    cancelled = ask(conf, "cancel", reqid)
    assert cancelled.returncode == 0, cancelled.stderr
    row = cancelled.stdout.splitlines()[2].split()
    assert (row[0], row[-1]) == ("slow", "yes")
    assert ask(conf, "wait", reqid, "--timeout", "30").returncode == 1
    eventually(lambda: not busy(ways, f"long-{way}"), what="its lock is free")


@pytest.mark.parametrize("way", ["here", "daemon"])
@pytest.mark.parametrize("words", [[], ["--follow"]], ids=["plain", "followed"])
def test_ctrl_c_lets_go_and_the_next_one_cancels(ways: Ways, way: str, words: list[str]) -> None:
    """Exit 130 both times; the run goes on after the first and is over after the second."""
    script = f"press-{way}{len(words)}"
    argv = command("ctrl-exec", "--config", getattr(ways, way), "run", "slow", script, *words)
    with subprocess.Popen(argv, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        eventually(lambda: busy(ways, script), what="the run has begun")
        assert process.stderr is not None
        said = ""
        process.send_signal(signal.SIGINT)
        while "Ctrl-C again" not in said:
            line = process.stderr.readline().decode()
            assert line, said
            said += line
        assert busy(ways, script)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    found = re.search(r"ctrl-exec output -f ([0-9a-f]{16})", said)
    assert found is not None
    assert re.search(rb"slow +\w+ +yes", stdout), stderr
    assert ask(ways.daemon, "wait", found[1], "--timeout", "30").returncode == 1
    assert json.loads(ask(ways.here, "status", found[1], "--json").stdout)["state"] == "cancelled"


def test_verbose_says_which_way_was_taken(ways: Ways) -> None:
    """And why not the other one."""
    assert f"ctrl-exec: over {ways.socket}\n" in ask(ways.daemon, "ping", "web-01", "-v").stderr
    assert "without the daemon: no api_socket is configured" in ask(ways.here, "ping", "web-01", "-v").stderr
    stderr = ask(ways.daemon, "ping", "web-01", "--port", "1", "-v").stderr
    assert "without the daemon: the daemon knows the agents' ports of the registry only" in stderr
    assert ask(ways.daemon, "ping", "web-01").stderr == ""


@contextlib.contextmanager
def answering(path: Path, *replies: bytes) -> Iterator[list[bytes]]:
    """A socket on which each connection gets these bytes, one piece after each thing it sends; what they sent."""
    path.unlink(missing_ok=True)
    sent: list[bytes] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    stream, _ = listener.accept()
                    with stream:
                        for reply in replies:
                            sent.append(stream.recv(65536))
                            stream.sendall(reply)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield sent
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(60)


def refusal(status: int, word: str, detail: str) -> bytes:
    body = json.dumps({"ok": False, "error": word, "detail": detail}).encode()
    return b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body)


CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


@pytest.mark.parametrize(
    ("replies", "reason"),
    [
        ((refusal(503, "service unavailable", "64 requests are being served"),), "64 requests are being served"),
        ((CONTINUE, refusal(400, "bad request", "unknown key 'batch'")), "the daemon is older"),
        ((CONTINUE, refusal(404, "not found", "there is nothing at /run")), "the daemon is older"),
        ((b"",), "is not ctrl-exec-api"),
        ((b"SSH-2.0\r\n\r\n",), "is not ctrl-exec-api"),
    ],
    ids=["overloaded", "older-key", "older-route", "silent", "other"],
)  # fmt: skip
def test_who_refuses_before_anything_is_done_is_gone_round(
    ways: Ways, replies: tuple[bytes, ...], reason: str
) -> None:
    """The run is begun once, by this process; the body never went to who did not ask for it."""
    script = f"once-{sum(map(len, replies))}"
    with answering(ways.shared.home / "odd.sock", *replies) as sent:
        ended = ask(
            ways.conf("odd.conf", api_socket=ways.shared.home / "odd.sock"), "run", "web-01", script, "-v"
        )
    assert ended.returncode == 0, ended.stderr
    assert f"without the daemon: {reason}" in ended.stderr or reason in ended.stderr
    assert ways.asked("web-01", script) == 1
    if len(replies) == 1:
        assert len(sent) == 1
        assert script.encode() not in sent[0]


def test_an_answer_that_is_lost_is_not_asked_for_again(ways: Ways) -> None:
    """The daemon went away after it had the request: the run is not begun a second time."""
    with answering(ways.shared.home / "lost.sock", CONTINUE, b"HTTP/1.1 200 OK\r\nContent-Le"):
        conf = ways.conf("lost.conf", api_socket=ways.shared.home / "lost.sock")
        ended = ask(conf, "run", "web-01", "lost", "--json")
    assert ended.returncode == 1
    assert "ctrl-exec runs" in json.loads(ended.stdout)["detail"]
    assert ways.asked("web-01", "lost") == 0


def test_a_socket_that_is_not_served_is_gone_round(ways: Ways) -> None:
    """A file that a dead daemon left; a path that is not there; another dispatcher's daemon."""
    stale = ways.shared.home / "stale.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(stale))
    ended = ask(ways.conf("stale.conf", api_socket=stale), "run", "web-01", "stale", "-v")
    assert (ended.returncode, "Connection refused" in ended.stderr) == (0, True)
    ended = ask(ways.conf("none.conf", api_socket="/nonexistent/api.sock"), "ping", "web-01", "-v")
    assert (ended.returncode, "No such file" in ended.stderr) == (0, True)
    other = ways.shared.home / "other"
    other.mkdir(exist_ok=True)
    ended = ask(ways.conf("other.conf", state_dir=other), "ping", "web-01", "-v")
    assert (ended.returncode, "serves another dispatcher" in ended.stderr) == (1, True)
    assert "not registered: web-01" in ended.stderr


def test_another_users_name_is_claimed_without_the_daemon(ways: Ways) -> None:
    """Root may claim it on the socket too; who is not root has their own name there."""
    ways.seen()
    assert ask(ways.daemon, "ping", "web-01", "--username", "alice").returncode == 0
    (question,) = ways.seen()
    assert " alice 127.0.0.1 " in question
    assert question.split()[-2:] == (["socket", "claimed"] if os.geteuid() == 0 else ["cli", "claimed"])


@pytest.mark.parametrize("way", ["here", "daemon"])
def test_a_terminal_shows_the_hosts_live(ways: Ways, way: str) -> None:
    """Who is waited for, how many came to what; a silent one is left as anywhere else; then the results."""
    script = f"live-{way}"
    words = ("run", "bad-01", "web-01", "slow", script, "--read-timeout", "1")
    with Terminal("--config", getattr(ways, way), *words) as terminal:
        assert terminal.finish() == 1
    text = terminal.text
    assert re.search(r"slow +pending", text)
    assert re.search(r"\[#{16}-{8}\]  2/3  .*1 failed", text)
    assert re.search(r"\x1b\[[JK]==> bad-01", text)
    shown = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text.replace("\r\n", "\n"))
    assert "==> web-01  [OK  exit:0" in shown
    assert re.search(r"==> slow  \[RUNNING  exit:-1  .*\]\n    ERROR: read timeout after 1s\n", shown)
    found = re.search(r"not finished everywhere: ctrl-exec status ([0-9a-f]{16})", shown)
    assert found is not None
    assert ask(getattr(ways, way), "cancel", found[1]).returncode == 0


def children_of(pid: int) -> list[int]:
    """The pids of a process's children."""
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@contextlib.contextmanager
def restartable(ways: Ways, name: str, **changes: object) -> Iterator[tuple[Path, Callable[[], int]]]:
    """A configuration with a daemon of its own, and what starts it (again) and gives its pid; all are ended."""
    conf = ways.conf(
        f"{name}.conf", api_socket=ways.shared.home / f"{name}.sock", agent_keepalive=0, **changes
    )
    started: list[Running] = []

    def start() -> int:
        started.append(Running("ctrl-exec-api", "--config", conf, log_path=ways.shared.home / f"{name}.log"))
        started[-1].port()
        return started[-1].process.pid

    try:
        yield conf, start
    finally:
        for each in started:
            each.__exit__()


def test_a_daemon_that_is_killed_tears_and_doubles_no_line(ways: Ways) -> None:
    """It dies with all its children while a run is followed, and is started again: each line comes once."""
    with restartable(ways, "killed") as (conf, start):
        api = start()
        argv = command("ctrl-exec", "--config", conf, "run", "--follow", "talker", "talk")
        with subprocess.Popen(
            argv, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            first = [process.stdout.readline() for _ in range(5)]
            for pid in (api, *children_of(api)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            start()
            rest, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    shown = b"".join(first) + rest
    assert shown.decode().splitlines() == ["ok", *(f"line {number:08d}" for number in range(1, 26))]


def test_a_daemon_that_stops_within_a_run_changes_nothing(ways: Ways) -> None:
    """It lets go of the run at the end of its drain; the command waits for the end all the same."""
    with restartable(ways, "stopped", api_drain=0) as (conf, start):
        api = start()
        argv = command("ctrl-exec", "--config", conf, "--json", "run", "talker", "talk-on")
        with subprocess.Popen(
            argv, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            eventually(lambda: busy(ways, "talk-on"), what="the run has begun")
            os.kill(api, signal.SIGTERM)
            stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    (result,) = json.loads(stdout)["results"]
    assert (result["state"], result["stdout"].count("line ")) == ("ok", 25)
