"""The agent as one file: built, started with nothing installed, and doing all an agent does."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.support.agents import AgentHost, connection_outcome
from tests.support.polling import eventually
from tests.support.processes import ROOT


@pytest.fixture(scope="module")
def pyz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built file, alone in its directory."""
    target = tmp_path_factory.mktemp("dist") / "ctrl-exec-agent.pyz"
    subprocess.run([sys.executable, ROOT / "packaging/build_pyz.py", target], check=True, capture_output=True)
    return target


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, object]:
    """How a process is started that finds nothing of this checkout."""
    return {"cwd": tmp_path, "env": {"PATH": "/usr/bin:/bin"}, "text": True}


def start(pyz: Path, *arguments: object) -> list[str]:
    return [sys.executable, "-I", "-S", str(pyz), *map(str, arguments)]


def test_it_holds_the_agent_and_the_kernel_and_nothing_else(pyz: Path):
    names = set(zipfile.ZipFile(pyz).namelist())
    modules = {name for name in names if name.endswith(".py")} - {"__main__.py"}
    assert names == modules | {f"{name}c" for name in modules} | {"__main__.py"}
    assert {name.rpartition("/")[0] for name in modules} == {
        "ctrl_exec",
        "ctrl_exec/common",
        "ctrl_exec_agent",
    }
    assert {name for name in modules if name.startswith("ctrl_exec/") and name.count("/") == 1} == {
        "ctrl_exec/__init__.py"
    }


def test_the_same_sources_give_the_same_bytes(pyz: Path, tmp_path: Path):
    again = tmp_path / "again.pyz"
    subprocess.run([sys.executable, ROOT / "packaging/build_pyz.py", again], check=True, capture_output=True)
    assert again.read_bytes() == pyz.read_bytes()


def test_no_source_is_compiled_at_its_start(pyz: Path, bare: dict):
    ended = subprocess.run(
        [sys.executable, "-I", "-S", "-vv", pyz, "--version"], capture_output=True, check=True, **bare
    )
    assert ended.stdout.startswith("ctrl-exec-agent ")
    tried = re.findall(r"# trying \S+/(ctrl_exec\S*)", ended.stderr)
    assert "ctrl_exec_agent/main.pyc" in tried
    assert not [name for name in tried if name.endswith(".py") and not name.endswith("/__init__.py")]


def test_it_is_a_program_of_its_own(pyz: Path, bare: dict):
    assert os.access(pyz, os.X_OK)
    assert pyz.read_bytes().startswith(b"#!/usr/bin/python3 -IS\n")
    ended = subprocess.run(
        [sys.executable, "-I", "-S", os.path.relpath(pyz, bare["cwd"]), "--help"], capture_output=True, check=True,
        **bare,
    )  # fmt: skip
    assert "request-pairing" in ended.stdout


def test_it_serves_also_after_its_file_is_gone(pyz: Path, bare: dict, host: AgentHost, tmp_path: Path, ca):
    """An upgrade replaces the file under a running agent, which must have read all it needs."""
    host.script("hello", 'echo "hi $1"')
    hook = tmp_path / "hook"
    hook.write_text("#!/bin/sh\nexit 0\n")
    hook.chmod(0o755)
    host.configure(f"auth_hook = {hook}\n")
    own = tmp_path / "agent.pyz"
    own.write_bytes(pyz.read_bytes())
    log_path = tmp_path / "pyz.log"
    with log_path.open("w") as log:
        process = subprocess.Popen(
            start(Path("agent.pyz"), "serve", "--config", host.config), stdout=log, stderr=log, **bare
        )
    try:
        found = eventually(lambda: re.search(r"ADDRESS=\S+:(\d+)", log_path.read_text()))
        host.port = int(found[1])
        own.unlink()
        assert host.run("hello", "there")["stdout"] == "hi there\n"
        detached = {"script": "hello", "args": [], "reqid": "0123456789abcdef", "async": True}
        assert host.ask("POST", "/run", detached).status == 202
        eventually(lambda: host.result("0123456789abcdef").json()["status"] == "done")
        assert host.ask("GET", "/capabilities").status == 200
        assert host.ask("POST", "/nothing", b"{").status == 404
        csr = host.ask("POST", "/renew", {"reqid": "0123456789abcdef"}).json()["csr"]
        assert "BEGIN CERTIFICATE REQUEST" in csr
        renewed = ca.issue("host-a", key=host.leaf.key).crt.read_text()
        assert host.ask("POST", "/renew-complete", {"cert": renewed}).json()["status"] == "ok"
        fresh = ca.dispatcher("main")
        body = {"serial": fresh.serial, "action": "add", "cert": fresh.crt.read_text()}
        assert host.ask("POST", "/rotate-serial", body).json()["status"] == "ok"
        assert "closed" in connection_outcome(host, None)
        eventually(lambda: "ACTION=reload OUTCOME=ok" in log_path.read_text())
        assert "crash" not in log_path.read_text()
        assert "Error" not in log_path.read_text()
    finally:
        process.terminate()
        assert process.wait(60) == 0


def test_its_commands_work(pyz: Path, bare: dict, host: AgentHost):
    host.script("hello", "echo hi; exit 3")
    for arguments, code in (
        (("self-check", "--json"), 0), (("paired", "--json"), 0), (("--json", "run-local", "hello"), 3),
        (("cert-staged", "--json"), 1), (("bogus",), 2),
    ):  # fmt: skip
        ended = subprocess.run(
            start(pyz, *arguments, "--config", host.config), capture_output=True, check=False, **bare
        )
        assert ended.returncode == code, ended.stderr
        if "--json" in arguments:
            json.loads(ended.stdout)
