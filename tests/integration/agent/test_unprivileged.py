"""The agent as its own user, with files of root that it may read and not write: a system installation."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.agents import AgentHost
from tests.support.pki import TestCA
from tests.support.polling import eventually
from tests.support.processes import ROOT

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="changing users needs root"),
]
USER = 65534  # nobody: any user but root does
REQID = "00112233aabbccdd"


@pytest.fixture
def installed(ca: TestCA) -> Iterator[AgentHost]:
    """An agent whose configuration is root's and whose state is its user's."""
    # not below pytest's directory, which only root may enter
    directory = Path(tempfile.mkdtemp(prefix="agent-"))
    directory.chmod(0o755)
    try:
        host = AgentHost(directory, ca)
        for path in (host.etc, *host.etc.iterdir()):
            os.chown(path, 0, USER)
            path.chmod(0o750 if path.is_dir() else 0o640)
        for path in (host.state, *host.state.iterdir()):
            os.chown(path, USER, USER)
        yield host
    finally:
        shutil.rmtree(directory)


@pytest.fixture
def pyz(installed: AgentHost) -> Path:
    """The program as that user can read it."""
    target = installed.directory / "agent.pyz"
    subprocess.run(["python3", ROOT / "packaging/build_pyz.py", target], check=True, capture_output=True)
    return target


def as_user(pyz: Path, *arguments: object) -> list[str]:
    identity = [f"--reuid={USER}", f"--regid={USER}", "--clear-groups"]
    return ["setpriv", *identity, "/usr/bin/python3", "-I", "-S", str(pyz), *map(str, arguments)]


@pytest.fixture
def serving(installed: AgentHost, pyz: Path) -> Iterator[AgentHost]:
    installed.script("whoami", "id -u; cat; exit 3")
    log_path = installed.directory / "log"
    with log_path.open("w") as log:
        process = subprocess.Popen(
            as_user(pyz, "serve", "--config", installed.config), stdout=log, stderr=log, cwd="/"
        )
    try:
        import re

        found = eventually(lambda: re.search(r"ADDRESS=\S+:(\d+)", log_path.read_text()))
        installed.port = int(found[1])
        installed.log = log_path.read_text  # type: ignore[method-assign]
        yield installed
    finally:
        process.terminate()
        process.wait(60)


def test_it_runs_records_rotates_and_stages_and_root_promotes(serving: AgentHost, pyz: Path, ca: TestCA):
    found = serving.run("whoami", reqid=REQID)
    assert found["exit"] == 3
    assert found["stdout"].startswith(f"{USER}\n")
    record = serving.state / f"runs/main/{REQID}.json"
    assert (record.stat().st_uid, record.stat().st_mode & 0o777) == (USER, 0o640)
    fresh = ca.dispatcher("main")
    body = {"serial": fresh.serial, "action": "add", "cert": fresh.crt.read_text()}
    assert serving.ask("POST", "/rotate-serial", body).json()["status"] == "ok"
    renewed = ca.issue("host-a", key=serving.leaf.key).crt.read_text()
    assert serving.ask("POST", "/renew-complete", {"cert": renewed}).json()["staged"] is True
    assert serving.ask("POST", "/ping", {"reqid": REQID}).json()["staged"] is True
    assert (serving.etc / "agent.crt").read_text() != renewed
    ended = subprocess.run(
        as_user(pyz, "promote-cert", "--config", serving.config), capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1
    assert "Permission denied" in ended.stderr
    ended = serving.command("promote-cert")
    assert ended.returncode == 0, ended.stderr
    promoted = serving.etc / "agent.crt"
    assert promoted.read_text() == renewed
    assert (promoted.stat().st_uid, promoted.stat().st_gid, promoted.stat().st_mode & 0o777) == (
        0,
        USER,
        0o640,
    )


def test_a_staged_link_of_the_agents_user_is_not_followed_by_root(serving: AgentHost):
    (serving.state / "staged.crt").symlink_to("/etc/passwd")
    ended = serving.command("promote-cert")
    assert ended.returncode == 1
    assert "symbolic link" in ended.stderr


def test_self_check_as_the_user_finds_what_it_cannot_use(serving: AgentHost, pyz: Path):
    command = as_user(pyz, "self-check", "--config", serving.config)
    good = subprocess.run(command, capture_output=True, text=True, check=False)
    assert good.returncode == 0, good.stdout
    assert f"(uid {USER})" in good.stdout
    (serving.etc / "agent.key").chmod(0o600)
    os.chown(serving.state, 0, 0)
    bad = subprocess.run(command, capture_output=True, text=True, check=False)
    assert bad.returncode == 1
    assert "agent.key: cannot be read" in bad.stdout
    assert "can't be written by" in bad.stdout
