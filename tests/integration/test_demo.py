"""`ctrl-exec demo` as a newcomer sees it: a real fleet that answers curl and goes away at Ctrl-C."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

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
        assert f"over {home[1]}/api.sock" in run("ctrl-exec", "--config", conf[1], "-v", "runs").stderr
        assert demo.stop(signal.SIGINT) == 0
        assert not Path(home[1]).exists()
        left = subprocess.run(["pgrep", "-f", home[1]], capture_output=True, text=True, check=False)
        eventually(lambda: not _matching(home[1]), what=f"no process of the demo is left: {left.stdout}")


def _matching(text: str) -> str:
    return subprocess.run(["pgrep", "-f", text], capture_output=True, text=True, check=False).stdout


def test_as_json_the_demo_says_where_everything_is(tmp_path: Path) -> None:
    programs = Path(sys.executable).parent
    if not (programs / "ctrl-exec-agent").exists():
        pytest.skip("the programs are not installed (make install)")
    env = {"TMPDIR": str(tmp_path), "PATH": f"{programs}:/usr/bin:/bin"}
    made = run("ctrl-exec", "demo", "--agents", "1", "--once", "--json", env=env, timeout_s=120)
    assert made.returncode == 0, made.stderr
    found = json.loads(made.stdout)
    assert found["ok"] is True
    assert found["api"].startswith("http://127.0.0.1:")
    assert found["config"].endswith("/ctrl-exec.conf")
    assert [each["name"] for each in found["agents"]] == ["demo-01"]


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
