"""`ctrl-exec demo` as a newcomer sees it: a real fleet that answers curl and goes away at Ctrl-C."""

from __future__ import annotations

import io
import json
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from ctrl_exec.cli.demo import Demo
from ctrl_exec.cli.output import Output
from tests.support.fleet import own_ip
from tests.support.polling import eventually
from tests.support.processes import Running, environment, run


def test_the_demo_pairs_runs_shows_and_leaves_nothing(tmp_path: Path) -> None:
    programs = Path(sys.executable).parent
    if not (programs / "ctrl-exec-agent").exists():
        pytest.skip("the programs are not installed (make install)")
    env = {"TMPDIR": str(tmp_path), "PATH": f"{programs}:/usr/bin:/bin"}
    log_path = tmp_path / "demo.log"
    with Running("ctrl-exec", "demo", "--agents", "2", log_path=log_path, env=env) as demo:
        found = demo.wait_for(r"curl -s (http://127\.0\.0\.1:\d+)/discovery", timeout_s=90)
        said = demo.log()
        assert len(re.findall(r"paired, both sides showed \d{6}", said)) == 2
        assert len(re.findall(r"==> demo-0[12]  \[OK  exit:0", said)) == 2
        assert said.count("hello from the demo") == 2
        home = re.search(r"A private fleet in (\S+):", said)
        assert home is not None
        made = subprocess.run(
            ["curl", "-s", f"{found[1]}/run", "-d", '{"hosts": ["@all"], "script": "fail"}'],
            capture_output=True, check=True, timeout=60,
        )  # fmt: skip
        answer = json.loads(made.stdout)
        assert [(each["exit"], each["state"]) for each in answer["results"]] == [(3, "failed")] * 2
        conf = re.search(r"CTRL_EXEC_CONFIG=(\S+)", said)
        assert conf is not None
        tagged = run("ctrl-exec", "--config", conf[1], "--json", "ping", "-t", "number=2")
        assert [each["host"] for each in json.loads(tagged.stdout)["results"]] == ["demo-02"]
        assert len(re.findall(r"^\d{4}-\d\d-\d\dT\S+ .*\*/20 \* \* \* \* \*$", said, re.M)) == 5
        assert said.count("hello from a task") == 2
        assert re.search(r"Say hello +SUCCESS +USER ", said)
        assert re.search(r"export TOKEN=ctpat_\S+", said)
        assert f"over {home[1]}/api.sock" in run("ctrl-exec", "--config", conf[1], "-v", "runs").stderr
        assert demo.stop(signal.SIGINT) == 0
        assert not Path(home[1]).exists()
        left = subprocess.run(["pgrep", "-f", home[1]], capture_output=True, text=True, check=False)
        eventually(lambda: not _matching(home[1]), what=f"no process of the demo is left: {left.stdout}")


def _the_clock_starts_it(url: str, token: str) -> None:
    """Without anybody asking; seen over HTTP with the demo's token."""
    ask = ["curl", "-s", "-H", f"Authorization: Bearer {token}", f"{url}/api/v1/executions?status=SUCCESS"]

    def triggers() -> set[str]:
        made = subprocess.run(ask, capture_output=True, check=True, timeout=60)
        return {each["trigger"] for each in json.loads(made.stdout)["items"]}

    eventually(lambda: "SCHEDULE" in triggers(), timeout_s=90, what="a start by the clock")


def _matching(text: str) -> str:
    return subprocess.run(["pgrep", "-f", text], capture_output=True, text=True, check=False).stdout


@pytest.mark.long
def test_as_json_the_demo_says_where_everything_is(tmp_path: Path) -> None:
    programs = Path(sys.executable).parent
    if not (programs / "ctrl-exec-agent").exists():
        pytest.skip("the programs are not installed (make install)")
    env = {"TMPDIR": str(tmp_path), "PATH": f"{programs}:/usr/bin:/bin"}
    log_path = tmp_path / "demo.log"
    words = ("demo", "--agents", "1", "--json")
    with Running("ctrl-exec", *words, log_path=log_path, env=env) as demo:
        found = json.loads(demo.wait_for(r"(?m)^(\{.*\})$", timeout_s=120)[1])
        _the_clock_starts_it(found["api"], found["token"])
        assert demo.stop(signal.SIGINT) == 0
        assert demo.log().count("\n") == 1
    assert found["ok"] is True
    assert found["api"].startswith("http://127.0.0.1:")
    assert found["config"].endswith("/ctrl-exec.conf")
    assert [each["name"] for each in found["agents"]] == ["demo-01"]
    assert found["task"]["status"] == "SUCCESS"
    assert found["token"].startswith("ctpat_")


def test_demos_side_by_side_have_ports_of_their_own() -> None:
    """Held from when they are chosen until the servers have them, which may listen beside."""
    output = Output(io.StringIO(), io.StringIO())
    demos = [Demo(f"/nowhere/{number}", output) for number in range(3)]
    ip = own_ip()
    try:
        ports = [demo.hold_port(ip, 7443) for demo in demos]
        assert ports[0] == 7443
        assert len({*ports}) == 3
        assert len({each for demo in demos for each in (demo.api_port, demo.pairing_port)}) == 6
        with socket.socket() as server:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind((ip, ports[0]))
            server.listen()
    finally:
        for demo in demos:
            demo.release_ports()


@pytest.mark.parametrize("count", ["0", "51", "many", "-1", "1.5"])
def test_a_bad_number_of_agents_is_a_usage_error(count: str) -> None:
    made = run("ctrl-exec", "demo", "--agents", count)
    assert made.returncode == 2
    assert "expected a number from 1 to 50" in made.stderr


def test_a_demo_that_cannot_find_its_programs_says_so(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    alone = tmp_path / "bin" / "ctrl-exec"
    alone.parent.mkdir()
    alone.write_text(f"#!{sys.executable}\nfrom ctrl_exec.cli.main import main\nmain()\n")
    alone.chmod(0o755)
    made = subprocess.run(
        [str(alone), "demo", "--once", "--agents", "1"],
        env=environment({"TMPDIR": str(tmp_path / "home"), "PATH": "/usr/bin:/bin"}),
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert made.returncode != 0
    assert "ctrl-exec-agent is not there" in made.stderr
    assert not list((tmp_path / "home").iterdir())
