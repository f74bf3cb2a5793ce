"""How `ctrl-exec` starts: with few imports, from a bare checkout, as the right user."""

from __future__ import annotations

import grp
import json
import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.cli.instance import Instance
from tests.support.processes import ROOT, environment, needs_other_user, run

HEAVY = {
    "argparse", "asyncio", "dataclasses", "difflib", "email", "http", "inspect", "ipaddress", "logging", "ssl",
    "subprocess", "tempfile", "threading", "typing", "urllib", "uuid", "cryptography", "croniter", "OpenSSL",
}  # fmt: skip
# what those bring along whose C parts suffice
WRAPPERS = {
    "base64", "collections", "contextlib", "datetime", "enum", "functools", "json", "re", "selectors", "signal",
    "socket",
}  # fmt: skip


def modules_after(*words: object) -> set[str]:
    """The modules a command line has imported, top levels only, beside those of a bare interpreter."""
    leave = "os._exit = lambda code: print('\\n@@', *sorted(set(sys.modules) - before)) or sys.exit()"
    probe = (
        f"import sys; before = set(sys.modules); sys.path.insert(0, {str(ROOT)!r}); import os; {leave};"
        f"from ctrl_exec.cli import main; sys.argv[1:] = {[str(word) for word in words]!r}; main.main()"
    )
    ended = subprocess.run(
        [sys.executable, "-I", "-S", "-c", probe], capture_output=True, text=True, check=True
    )
    return set(ended.stdout.rpartition("@@ ")[2].split())


def test_version_imports_next_to_nothing() -> None:
    """The interpreter, one package, one module."""
    assert {name for name in modules_after("--version") if name.startswith("ctrl_exec")} == {
        "ctrl_exec", "ctrl_exec.cli", "ctrl_exec.cli.main",
    }  # fmt: skip
    assert modules_after("--version") & HEAVY == set()


@pytest.mark.parametrize(
    "words", [["help"], ["run", "--help"], ["list-locks"], ["completion", "words", "--", "r"]]
)
def test_commands_import_what_they_need(shared: Instance, words: list[str]) -> None:
    """No TLS, no certificates, no argparse for a look at files."""
    assert {name.split(".")[0] for name in modules_after("--config", shared.conf, *words)} & HEAVY == set()


def test_a_run_needs_tls_and_nothing_heavier(shared: Instance) -> None:
    """Neither cryptography nor any of the slow parts of the standard library."""
    imported = {
        name.split(".")[0] for name in modules_after("--config", shared.conf, "run", "web-01", "deploy")
    }
    assert imported & (HEAVY | WRAPPERS) == set()


@pytest.mark.parametrize("program", ["ctrl-exec", "ced", "ctrl-exec-api", "ctrl-exec-scheduler"])
def test_launchers_are_short_and_executable(program: str) -> None:
    """At most ten lines, no logic."""
    path = ROOT / "bin" / program
    assert os.access(path, os.X_OK)
    assert len(path.read_text().splitlines()) <= 10


def test_the_launcher_runs_from_a_bare_checkout_anywhere(shared: Instance, tmp_path: Path) -> None:
    """With the system's Python, through a link, from another directory, without PYTHONPATH."""
    link = tmp_path / "ctrl-exec"
    link.symlink_to(ROOT / "bin" / "ctrl-exec")
    bare = {"PATH": "/usr/bin:/bin"}
    ended = subprocess.run(
        [link, "--config", shared.conf, "ping", "web-01"],
        env=bare,
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[2].startswith("web-01  ok")


def test_a_missing_package_is_named(tmp_path: Path) -> None:
    """A bare checkout cannot make certificates without `cryptography`; it says what to do."""
    for name in ("bin", "ctrl_exec"):
        shutil.copytree(
            ROOT / name, tmp_path / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__")
        )
    # an interpreter without site-packages stands for a system without the packages
    python = tmp_path / "python3"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    python.chmod(0o755)
    conf = tmp_path / "c.conf"
    conf.write_text(f"etc_dir = {tmp_path}/etc\nstate_dir = {tmp_path}/state\nlog_target = stderr\n")
    bare = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    argv = [tmp_path / "bin" / "ctrl-exec", "--config", conf, "setup-ca"]
    ended = subprocess.run(argv, env=bare, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "no Python package cryptography: run `make install`, then .venv/bin/ctrl-exec" in ended.stderr
    with_json = subprocess.run([*argv, "--json"], env=bare, capture_output=True, text=True, check=False)
    assert json.loads(with_json.stdout)["ok"] is False


@pytest.fixture
def owned(tmp_path: Path) -> Iterator[Instance]:
    """An instance that belongs to `nobody`, as an installed one belongs to its service user."""
    if os.geteuid() != 0:
        pytest.skip("needs root to become somebody else")
    made = Instance(tmp_path)
    made.fleet.add("web-01")
    made.start()
    nobody = pwd.getpwnam("nobody")
    for path in (tmp_path, *tmp_path.parents):
        if path.parent == Path("/"):
            break
        path.chmod(path.stat().st_mode | 0o011)
    for path in tmp_path.rglob("*"):
        os.chown(path, nobody.pw_uid, nobody.pw_gid)
    made.configure(service_user="nobody")
    yield made
    made.close()


@pytest.mark.root
@needs_other_user
def test_root_becomes_the_service_user_before_it_touches_state(owned: Instance) -> None:
    """Everything a run leaves behind belongs to the service user."""
    ended = owned.cli("run", "web-01", "deploy")
    assert ended.returncode == 0, ended.stderr
    made = [
        path for path in (owned.home / "state").rglob("*") if path.is_file() and "agents" not in path.parts
    ]
    assert made
    assert {path.owner() for path in made} == {"nobody"}
    assert {path.group() for path in made} == {grp.getgrgid(pwd.getpwnam("nobody").pw_gid).gr_name}


@pytest.mark.root
@needs_other_user
def test_the_service_user_cannot_use_what_only_root_may_read(owned: Instance) -> None:
    """The privileges are gone for good: a key of root's is out of reach, and said so."""
    os.chown(owned.fleet.identity.pem, 0, 0)
    owned.fleet.identity.pem.chmod(0o600)
    ended = owned.cli("run", "web-01", "deploy")
    assert ended.returncode == 1
    assert "cannot be read" in ended.stderr
    assert "ctrl-exec doctor" in ended.stderr


@pytest.mark.root
def test_a_service_user_that_does_not_exist_is_refused(owned: Instance) -> None:
    """Never fall back to root."""
    owned.configure(service_user="nobody-here")
    ended = owned.cli("list-locks")
    assert ended.returncode == 2
    assert "service_user: there is no user 'nobody-here'" in ended.stderr
    assert owned.cli("check-config").returncode == 0


def test_ignored_sigchld_of_the_caller_changes_nothing(shared: Instance, tmp_path: Path) -> None:
    """A denying hook still denies when whoever started us ignores SIGCHLD."""
    import signal

    from tests.support.processes import command

    hook = tmp_path / "hook"
    hook.write_text("#!/bin/sh\nexit 1\n")
    hook.chmod(0o755)
    conf = tmp_path / "c.conf"
    conf.write_text(shared.conf.read_text() + f"auth_hook = {hook}\n")
    for _ in range(3):
        ended = subprocess.run(
            command("ctrl-exec", "--config", conf, "ping", "web-01"), env=environment(), capture_output=True, check=False,
            preexec_fn=lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN),
        )  # fmt: skip
        assert ended.returncode == 3


def test_version_needs_no_configuration() -> None:
    """Neither does help."""
    for words in (["--version"], ["--version", "--json"], ["help"], ["run", "--help"]):
        assert run("ctrl-exec", *words, env={"CTRL_EXEC_CONFIG": "/nonexistent"}).returncode == 0
