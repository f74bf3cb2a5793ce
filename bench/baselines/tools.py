"""The tools that admins would otherwise type: where they are, and installing what is missing.

PyPI's go into a virtual environment of the benches alone, Debian's through apt when we are root. What
can't be had is left out with a word.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

_VENV = Path(__file__).resolve().parents[1] / ".venv"
_PACKAGES = {"clush": "ClusterShell", "parallel-ssh": "parallel-ssh", "ansible": "ansible-core"}
_DEBIAN = {"pdsh": "pdsh", "sshd": "openssh-server", "openssl": "openssl", "cc": "gcc"}


def program(name: str) -> str | None:
    """The path of a tool, installed now if need be; None where it can't be had."""
    if name in _PACKAGES:
        return _from_pypi(name)
    found = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    return found or _from_debian(name)


def python_with(name: str) -> str | None:
    """The interpreter of the environment in which that PyPI tool is; None where it can't be had."""
    return str(_VENV / "bin" / "python") if _from_pypi(name) else None


def version(name: str) -> str:
    """The version of a PyPI tool that is installed."""
    code = "import importlib.metadata as m, sys; print(m.version(sys.argv[1]))"
    argv = [str(_VENV / "bin" / "python"), "-c", code, _PACKAGES[name]]
    return subprocess.run(argv, capture_output=True, text=True, check=False).stdout.strip()


def _from_pypi(name: str) -> str | None:
    path = _VENV / "bin" / name
    marker = _VENV / f".installed-{name}"
    if not marker.exists():
        python = str(_VENV / "bin" / "python")
        if not Path(python).exists() and not _works([sys.executable, "-m", "venv", str(_VENV)]):
            return None
        if not _works([python, "-m", "pip", "install", "-q", "--disable-pip-version-check", _PACKAGES[name]]):
            return None
        marker.touch()
    return str(path)


def _from_debian(name: str) -> str | None:
    if os.geteuid() != 0 or name not in _DEBIAN or shutil.which("apt-get") is None:
        return None
    environment = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
    argv = ["apt-get", "install", "-y", "-q", "--no-install-recommends", _DEBIAN[name]]
    if not _works(argv, environment):
        _works(["apt-get", "update", "-q"], environment)
        _works(argv, environment)
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")


def _works(argv: list[str], environment: dict[str, str] | None = None) -> bool:
    made = subprocess.run(argv, capture_output=True, env=environment, stdin=subprocess.DEVNULL, check=False)
    return made.returncode == 0
