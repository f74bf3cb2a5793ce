"""The dispatcher: its parts come when they are asked for, wired by the configuration."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ctrl_exec.common.errors import DeniedError
from ctrl_exec.common.log import Log
from ctrl_exec.config import parse_config
from ctrl_exec.dispatcher import Dispatcher, IdentitySerial, identity_serial, open_dispatcher
from ctrl_exec.services.authority import Caller
from tests.support.pki import TestCA


def make(home: Path, *lines: str, environment: dict[str, str] | None = None) -> Dispatcher:
    text = "\n".join([f"etc_dir = {home}/etc", f"state_dir = {home}/state", "log_target = stderr", *lines])
    log = Log("test", stream=io.StringIO())
    return open_dispatcher(parse_config(text), log, environment={} if environment is None else environment)


def test_opening_opens_nothing(tmp_path: Path) -> None:
    """No file is made or read, and each part is made once."""
    found = make(tmp_path)
    for part in ("registry", "authority", "locks", "results", "agents"):
        assert getattr(found, part) is getattr(found, part)
    assert list(tmp_path.iterdir()) == []


def test_a_part_pays_for_itself_alone() -> None:
    """Who needs the locks loads neither TLS nor the record store."""
    script = (
        "import sys\nfrom ctrl_exec.config import parse_config\nfrom ctrl_exec.common.log import Log\n"
        "from ctrl_exec.dispatcher import open_dispatcher\n"
        "found = open_dispatcher(parse_config('etc_dir = /nonexistent\\nstate_dir = /nonexistent\\n'), Log('x'))\n"
        "assert found.locks.held() == ()\n"
        "loaded = {'ssl', 'multiprocessing', 'cryptography', 'ctrl_exec.services.results'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    root = Path(__file__).resolve().parents[2]
    subprocess.run(
        [sys.executable, "-c", script], check=True, cwd=root, env={"PYTHONPATH": str(root)}, timeout=60
    )


def test_the_hook_gets_the_configured_environment(tmp_path: Path) -> None:
    """auth_hook_env, its file, the dispatcher's id and its certificate's serial reach the hook."""
    leaf = TestCA(tmp_path).dispatcher()
    (tmp_path / "env").write_text("SITE=from-file\n")
    (tmp_path / "env").chmod(0o600)
    hook = tmp_path / "hook"
    hook.write_text(f"#!/bin/sh\nenv > {tmp_path}/told\n")
    hook.chmod(0o755)
    found = make(
        tmp_path,
        f"auth_hook = {hook}",
        "auth_hook_env = SITE, OTHER",
        f"auth_hook_env_file = {tmp_path}/env",
        f"cert = {leaf.pem}",
        "dispatcher_id = main",
        environment={"SITE": "from-daemon", "OTHER": "o", "SECRET": "s", "TZ": "UTC"},
    )
    found.authority.check(Caller(via="cli"), "run")
    told = dict(line.split("=", 1) for line in (tmp_path / "told").read_text().splitlines())
    assert (told["SITE"], told["OTHER"], told["TZ"]) == ("from-file", "o", "UTC")
    assert "SECRET" not in told
    assert told["HOME"]
    assert (told["ENVEXEC_DISPATCHER"], told["ENVEXEC_DISPATCHER_SERIAL"]) == ("main", leaf.serial)


def test_the_default_without_a_hook(tmp_path: Path) -> None:
    """api_auth_default is what the authority goes by."""
    with pytest.raises(DeniedError):
        make(tmp_path).authority.check(Caller(), "run")
    make(tmp_path, "api_auth_default = allow").authority.check(Caller(), "run")
    assert (
        make(tmp_path, "forward_token = never").authority.forwarded_token(Caller(forwarded_token="x")) == ""
    )


@pytest.mark.parametrize(
    "content", [None, b"", b"no certificate", b"\xff\xfe", b"-----BEGIN CERTIFICATE-----\nAAAA\n"]
)
def test_no_serial_without_a_certificate(tmp_path: Path, content: bytes | None) -> None:
    """A missing or damaged certificate has no serial; that is no reason to refuse to ask the hook."""
    path = tmp_path / "cert.pem"
    if content is not None:
        path.write_bytes(content)
    assert identity_serial(str(path)) == ""


def test_the_serial_is_read_again_when_the_certificate_is_replaced(tmp_path: Path) -> None:
    """A daemon's children ask for it at each question to the hook; a renewal must show at once."""
    path = tmp_path / "dispatcher.crt"
    serial = IdentitySerial(str(path))
    assert serial() == ""
    ca = TestCA(tmp_path / "pki")
    for name in ("one", "two"):
        leaf = ca.issue(name)
        shutil.copy(leaf.crt, tmp_path / "new")
        os.replace(tmp_path / "new", path)
        assert serial() == leaf.serial
        assert serial() == leaf.serial
    path.unlink()
    assert serial() == ""


@pytest.mark.root
def test_what_root_writes_belongs_to_whom_it_should(tmp_path: Path) -> None:
    """Records are root's and readable by the service group, contacts are the service user's."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    import grp
    import pwd

    from ctrl_exec.services.registry import AgentRecord

    registry = make(tmp_path, "service_user = nobody", "service_group = nogroup").registry
    registry.save(AgentRecord("host-a"))
    registry.note_contact("host-a", version="1")
    record = (tmp_path / "state" / "agents" / "host-a.json").stat()
    assert (record.st_uid, record.st_gid) == (0, grp.getgrnam("nogroup").gr_gid)
    contact = (tmp_path / "state" / "state" / "host-a.json").stat()
    assert contact.st_uid == pwd.getpwnam("nobody").pw_uid
