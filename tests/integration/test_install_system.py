"""`make install-system`: staged, and for real in a mount namespace whose /etc, /var/lib and /opt are copies."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ctrl_exec.config import DEFAULT_LOCAL_SOCKET, SERVICE_USER
from tests.support.processes import ROOT

UNITS = sorted((ROOT / "etc" / "systemd").glob("*.service"))
needs_root = pytest.mark.skipif(os.getuid() != 0, reason="mount namespaces and users need root")

# Everything the script changes below becomes a copy that is gone with the namespace.
IN_NAMESPACE = """
set -eu
mount --make-rprivate /
for each in {places}; do
    mkdir -p {copy}$each
    [ $each = /etc ] && cp -a /etc/. {copy}/etc/
    mount --bind {copy}$each $each
done
cd {root}
export PYTHON={python}
packaging/install-system install {role} {prefix}
packaging/install-system install {role} {prefix} >/dev/null
{check}
packaging/install-system uninstall {role} {prefix}
"""


# what a local command of that user is kept from by the modes alone; the unit hides it besides
LOCAL_COMMAND = (
    "setpriv --reuid ctrl-exec-local --regid ctrl-exec-local --init-groups"
    " sh -c 'ls /etc/ctrl-exec /var/lib/ctrl-exec 2>/dev/null || cat /etc/ctrl-exec/ctrl-exec.conf 2>/dev/null"
    ' || echo "local: $(id -un) can read neither /etc/ctrl-exec nor /var/lib/ctrl-exec"\';'
)


def in_namespace(tmp_path: Path, role: str, check: str) -> list[str]:
    """The lines that `check` prints inside the namespace after two installs; then it is uninstalled."""
    script = IN_NAMESPACE.format(
        copy=tmp_path / "copy",
        # the agent's scripts live in /opt; a dispatcher's Python packages may come from there
        places="/etc /var/lib /opt" if role == "agent" else "/etc /var/lib",
        root=ROOT,
        role=role,
        prefix=tmp_path / "prefix",
        check=check,
        # not one below somebody's home, which the service user may not enter
        python="/usr/bin/python3" if Path("/usr/bin/python3").exists() else shutil.which("python3"),
    )
    made = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script], capture_output=True, text=True, timeout=300, check=False
    )
    if "Operation not permitted" in made.stderr and "unshare" in made.stderr:
        pytest.skip("this machine allows no mount namespaces")
    assert made.returncode == 0, made.stdout + made.stderr
    return made.stdout.splitlines()


@pytest.mark.root
@needs_root
def test_an_agent_is_installed_as_one_file_with_its_user(tmp_path: Path) -> None:
    lines = in_namespace(
        tmp_path,
        "agent",
        "stat -c '%a %U:%G %n' /etc/ctrl-exec-agent /etc/ctrl-exec-agent/agent.conf /etc/ctrl-exec-agent/scripts.conf"
        " /var/lib/ctrl-exec-agent /opt/ctrl-exec-scripts; getent passwd ctrl-exec-agent;"
        f" {tmp_path}/prefix/bin/ctrl-exec-agent --version; ls /etc/systemd/system/ctrl-exec-agent.service",
    )
    assert "750 root:ctrl-exec-agent /etc/ctrl-exec-agent" in lines
    assert "640 root:ctrl-exec-agent /etc/ctrl-exec-agent/agent.conf" in lines
    assert "640 root:ctrl-exec-agent /etc/ctrl-exec-agent/scripts.conf" in lines
    assert "750 ctrl-exec-agent:ctrl-exec-agent /var/lib/ctrl-exec-agent" in lines
    assert "750 root:ctrl-exec-agent /opt/ctrl-exec-scripts" in lines
    assert any(line.startswith("ctrl-exec-agent:") and line.endswith("nologin") for line in lines)
    assert any(line.startswith(("ctrl-exec-agent 0.", "0.")) for line in lines)
    assert lines[-1].startswith("left in place:")
    assert not (tmp_path / "prefix" / "bin" / "ctrl-exec-agent").exists()
    assert not Path("/etc/ctrl-exec-agent").exists()


@pytest.fixture
def open_path() -> Iterator[Path]:
    """A directory that other users may enter, which pytest's own is not."""
    with tempfile.TemporaryDirectory(prefix="ctrl-exec-install-") as made:
        Path(made).chmod(0o755)
        yield Path(made)


@pytest.mark.long
@pytest.mark.root
@needs_root
def test_a_dispatcher_is_installed_and_works_as_its_service_user(open_path: Path) -> None:
    tmp_path = open_path
    program = f"{tmp_path}/prefix/bin/ctrl-exec"
    lines = in_namespace(
        tmp_path,
        "dispatcher",
        "stat -c '%a %U:%G %n' /etc/ctrl-exec /etc/ctrl-exec/ctrl-exec.conf /var/lib/ctrl-exec /var/lib/ctrl-exec/*"
        " /var/lib/ctrl-exec-local;"
        f" {tmp_path}/prefix/bin/ctrl-exec-local --version; ls /etc/systemd/system; {LOCAL_COMMAND}"
        f" {program} check-config; {program} setup-ca; {program} setup-ctrl-exec;"
        " stat -c '%a %U:%G %n' /etc/ctrl-exec/ca.key /etc/ctrl-exec/ca.crt /etc/ctrl-exec/identity/*.pem;"
        f" {program} list-agents --json; {program} --version;"
        f" grep -m1 '\"version\"' {tmp_path}/prefix/lib/ctrl-exec/ctrl-exec/openapi.json;"
        f" ls {tmp_path}/prefix/share/man/man1",
    )
    text = "\n".join(lines)
    for line in (
        "750 root:ctrl-exec /etc/ctrl-exec",
        "640 root:ctrl-exec /etc/ctrl-exec/ctrl-exec.conf",
        "1770 root:ctrl-exec /var/lib/ctrl-exec",
        "750 root:ctrl-exec /var/lib/ctrl-exec/agents",
        "2770 ctrl-exec:ctrl-exec /var/lib/ctrl-exec/locks",
        "2770 ctrl-exec:ctrl-exec /var/lib/ctrl-exec/runs",
        "2770 ctrl-exec:ctrl-exec /var/lib/ctrl-exec/pairing",
        "750 ctrl-exec-local:ctrl-exec-local /var/lib/ctrl-exec-local",
        "ctrl-exec-local.socket",
        "local: ctrl-exec-local can read neither /etc/ctrl-exec nor /var/lib/ctrl-exec",
        "600 root:root /etc/ctrl-exec/ca.key",
    ):
        assert line in lines, text
    assert any(line.startswith("644 root:") and line.endswith("/ca.crt") for line in lines), text
    assert any(line.startswith("600 ctrl-exec:") and "/identity/" in line for line in lines), text
    assert any('"agents": []' in line for line in lines), text
    assert "ctrl-exec.1" in text
    assert not (tmp_path / "prefix" / "lib" / "ctrl-exec").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["install", "server", "/usr"], "expected dispatcher or agent"),
        (["remove", "agent", "/usr"], "expected install or uninstall"),
        (["install", "agent", "usr"], "expected an absolute path"),
    ],
)
def test_wrong_words_are_refused(words: list[str], says: str) -> None:
    made = subprocess.run(
        [str(ROOT / "packaging" / "install-system"), *words], capture_output=True, text=True, check=False
    )
    assert made.returncode == 1
    assert says in made.stderr


@pytest.mark.parametrize("unit", UNITS, ids=lambda each: each.name)
def test_units_are_valid_and_the_services_are_hardened(unit: Path, tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed")
    copy = tmp_path / unit.name
    copy.write_text(unit.read_text().replace("@PREFIX@/bin/" + unit.stem, "/bin/true"))
    made = subprocess.run(
        [analyze, "security", "--offline=true", "--no-pager", str(copy)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    assert not made.stderr.strip(), made.stderr
    level = float(made.stdout.strip().splitlines()[-1].split(": ")[1].split()[0])
    if unit.stem not in ("ctrl-exec-agent", "ctrl-exec-local"):  # theirs is for others to fill
        assert level <= 2.0, made.stdout
    text = unit.read_text()
    assert "KillMode=process" in text
    assert "Type=notify" in text
    assert "WatchdogSec=" in text


@pytest.mark.parametrize("name", ["ctrl-exec-agent", "ctrl-exec-local"])
def test_scripts_and_commands_may_do_what_their_user_may(name: str) -> None:
    text = (ROOT / "etc" / "systemd" / f"{name}.service").read_text()
    assert "NoNewPrivileges=yes" not in text
    assert "ProtectSystem=" not in text.replace("no ProtectSystem", "")


def test_local_commands_have_neither_settings_nor_state_and_one_who_may_ask_for_them() -> None:
    unit = (ROOT / "etc" / "systemd" / "ctrl-exec-local.service").read_text()
    assert "User=ctrl-exec-local\n" in unit
    assert "InaccessiblePaths=-/etc/ctrl-exec -/var/lib/ctrl-exec" in unit
    listening = (ROOT / "etc" / "systemd" / "ctrl-exec-local.socket").read_text()
    for line in (f"ListenStream={DEFAULT_LOCAL_SOCKET}", f"SocketUser={SERVICE_USER}", "SocketMode=0600"):
        assert f"{line}\n" in listening
