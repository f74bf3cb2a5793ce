"""`--json` prints one JSON document and nothing else: every command, every error, every empty list."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ctrl_exec.cli.main import MODULES
from tests.support.forked import forked_cli
from tests.support.processes import run

# Commands that wait for people or stay up are asked for errors only.
STAYING = {"pairing-mode", "demo"}
LISTS = {
    "list-agents": "agents",
    "list-requests": "requests",
    "list-locks": "locks",
    "discovery": "hosts",
    "runs": "runs",
}


@pytest.fixture(scope="module")
def conf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh dispatcher: CA and identity, no agent."""
    home = tmp_path_factory.mktemp("json")
    path = home / "c.conf"
    path.write_text(
        f"etc_dir = {home}/etc\nstate_dir = {home}/state\napi_port = 0\npairing_port = 0\n"
        "pairing_bind = 127.0.0.1\nlog_target = stderr\n"
    )
    for name in ("setup-ca", "setup-ctrl-exec"):
        assert document(path, name)[1]["ok"] is True
    return path


def document(conf: Path, *words: str) -> tuple[int, dict[str, Any]]:
    """Exit code and the one document on stdout."""
    ended = forked_cli(conf.parent, "--config", conf, "--json", *words)
    assert ended.stdout.endswith("\n")
    found = json.loads(ended.stdout)
    assert isinstance(found, dict)
    assert isinstance(found["ok"], bool)
    assert "Traceback" not in ended.stderr
    return ended.returncode, found


@pytest.mark.parametrize("name", MODULES)
def test_wrong_usage_of_every_command(conf: Path, name: str) -> None:
    """An unknown option; a word too many where words are counted."""
    assert document(conf, name, "--nonsense") == (
        2, {"ok": False, "error": "usage", "detail": "unknown option --nonsense"}
    )  # fmt: skip
    code, found = document(conf, name, "--config")
    assert (code, found["error"]) == (2, "usage")


@pytest.mark.parametrize("name", MODULES)
def test_help_of_every_command(conf: Path, name: str) -> None:
    """The shape of the command, from the table that parses it."""
    code, found = document(conf, name, "--help")
    assert code == 0
    shape = found["command"] if name != "help" else found["commands"][0]
    assert {"name", "summary", "usage", "options"} == set(shape) - {"actions"}


@pytest.mark.parametrize("name", sorted(set(MODULES) - STAYING))
def test_every_command_without_words(conf: Path, name: str) -> None:
    """An answer, an empty list, or the error that says what is missing; always one document."""
    code, found = document(conf, name)
    if found["ok"]:
        assert code == 0
    else:
        assert code in (1, 2)
        assert found.get("detail") or found.get("findings")
    if name in LISTS:
        assert not found[LISTS[name]]


@pytest.mark.parametrize("name", sorted(set(MODULES) - {"help", "completion"} - STAYING))
def test_every_command_with_a_broken_configuration(tmp_path: Path, name: str) -> None:
    """Path and line; never a traceback, nothing started."""
    words = {"run": ["h", "s"], "ping": ["h"], "status": ["0" * 16], "approve": ["x"], "deny": ["x"]}
    words |= {
        "edit-agent": ["x", "--ip", "192.0.2.1"],
        "unpair": ["x"],
        "revoke": ["x"],
        "pairing-token": ["--name", "x"],
    }
    words |= {each: ["0" * 16] for each in ("output", "wait", "cancel")}
    layer = ("user", "token", "team", "project", "task", "execution", "notifier", "webhook", "audit")
    words |= {each: ["list"] for each in layer} | {"secrets": ["init"], "constant": ["list", "x"]}
    broken = tmp_path / "c.conf"
    broken.write_text("etc_dir = here\n")
    code, found = document(broken, name, *words.get(name, []))
    if name == "doctor":
        assert (code, found["problems"]) == (1, 1)
    else:
        assert (code, found["error"], found["path"], found["line"]) == (2, "configuration", str(broken), 1)


@pytest.mark.parametrize(
    ("words", "code", "error"),
    [
        (["approve", "0123456789abcdef"], 1, "not found"),
        (["deny", "nobody"], 1, "not found"),
        (["edit-agent", "nobody", "--ip", "192.0.2.1"], 1, "unknown agent"),
        (["unpair", "nobody"], 1, "unknown agent"),
        (["revoke", "nobody"], 1, "unknown agent"),
        (["edit-agent", "../x", "--ip", "192.0.2.1"], 2, "bad request"),
        (["pairing-token", "--name", "a b"], 2, "bad request"),
        (["pairing-token"], 2, "usage"),
        (["pairing-mode", "strat"], 2, "usage"),
        (["completion", "csh"], 2, "usage"),
        (["help", "pign"], 2, "usage"),
    ],
)
def test_errors_of_the_registry_and_pairing_commands(
    conf: Path, words: list[str], code: int, error: str
) -> None:
    """The class word and the exit code of its error."""
    given, found = document(conf, *words)
    assert (given, found["error"]) == (code, error)


def test_a_token_is_the_only_thing_printed(conf: Path) -> None:
    """The value alone; with --json the document that holds it."""
    plain = run("ctrl-exec", "--config", conf, "pairing-token", "--name", "web-01")
    assert plain.stdout.startswith("ctpair_")
    assert plain.stdout.count("\n") == 1
    code, found = document(conf, "pairing-token", "--name", "web-02")
    assert (code, found["token"][:7]) == (0, "ctpair_")
