"""The auth hook: what it is told, how its end is read, and that every failure denies."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctrl_exec.common.errors import ConfigError, InvalidInputError, PayloadError
from ctrl_exec.common.hook import (
    DEFAULT_PATH,
    VARIABLE_LIMIT_BYTES,
    HookQuestion,
    HookSettings,
    ask_hook,
    hook_environment,
)
from ctrl_exec.common.process import fork_child, is_group_alive, wait_status
from ctrl_exec.common.value import replace
from tests.support.polling import eventually

NAMES = {
    "ACTION", "SCRIPT", "HOSTS", "ARGS", "ARGS_JSON", "USERNAME", "TOKEN", "SOURCE_IP", "TIMESTAMP",
    "DISPATCHER", "DISPATCHER_SERIAL", "REQID", "SUBMITTER", "SUBMITTER_IP", "VIA", "AUTH", "OMITTED",
}  # fmt: skip

QUESTION = HookQuestion(
    action="run",
    timestamp="2026-01-15T12:00:00Z",
    script="pg-backup",
    hosts=("db-01", "db-02"),
    args=("--database", "my app", 'a"b\n'),
    username="alice",
    token="s3cret",
    source_ip="192.0.2.7",
    dispatcher="main",
    dispatcher_serial="0a1b",
    reqid="00112233445566aa",
    submitter="bob",
    submitter_ip="192.0.2.8",
    via="http",
    auth="claimed",
)


@pytest.fixture
def make_hook(tmp_path: Path) -> Callable[..., HookSettings]:
    def make(body: str, *, timeout_s: float = 20.0, mode: int = 0o755) -> HookSettings:
        path = tmp_path / "hook"
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(mode)
        return HookSettings(str(path), timeout_s=timeout_s)

    return make


@pytest.mark.parametrize(
    ("code", "verdict", "reason"),
    [
        (0, 0, ""),
        (1, 1, "denied"),
        (2, 2, "bad credentials"),
        (3, 3, "insufficient privilege"),
        (4, 1, "denied"),
        (7, 1, "denied"),
        (255, 1, "denied"),
    ],
)
def test_exit_code_is_the_verdict(make_hook, code: int, verdict: int, reason: str) -> None:
    """0 allows, 1 to 3 are reasons, every other code denies."""
    found = ask_hook(make_hook(f"exit {code}"), QUESTION)
    assert (found.code, found.reason, found.is_allowed) == (verdict, reason, code == 0)
    assert found.cause == f"exit {code}"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGHUP, signal.SIGPIPE])
def test_death_by_a_signal_denies(make_hook, number: int) -> None:
    """A hook that dies of a signal denies."""
    found = ask_hook(make_hook(f"kill -{int(number)} $$"), QUESTION)
    assert (found.code, found.cause) == (1, f"signal {int(number)}")


def test_a_hanging_hook_denies_and_its_group_is_killed(make_hook, tmp_path: Path) -> None:
    """The time limit denies and ends the whole process group, children that ignore TERM too."""
    body = f"(trap '' TERM; echo $$ > {tmp_path}/group; exec sleep 1000) & trap '' TERM; sleep 1000"
    started = time.monotonic()
    found = ask_hook(make_hook(body, timeout_s=0.5), QUESTION)
    assert found.has_timed_out
    assert found.code == 1
    assert time.monotonic() - started < 300
    group = int((tmp_path / "group").read_text())
    eventually(lambda: not is_group_alive(group))


def test_a_missing_hook_denies(tmp_path: Path) -> None:
    """A hook that is not there denies."""
    assert ask_hook(HookSettings(str(tmp_path / "none")), QUESTION).code == 1


def test_a_hook_that_is_not_executable_denies(make_hook) -> None:
    """A hook without its x bit denies, for root too."""
    assert ask_hook(make_hook("exit 0", mode=0o644), QUESTION).code == 1


def test_a_hook_that_is_no_program_denies(tmp_path: Path) -> None:
    """A directory, or a file the kernel can't execute, denies."""
    broken = tmp_path / "broken"
    broken.write_bytes(b"\x7fELF\0\0\0")
    broken.chmod(0o755)
    assert ask_hook(HookSettings(str(broken)), QUESTION).code == 1
    assert ask_hook(HookSettings(str(tmp_path)), QUESTION).code == 1


def test_a_mebibyte_of_output_changes_nothing(make_hook, capfd) -> None:
    """Output on both streams goes nowhere and does not block."""
    body = "head -c 1048576 /dev/zero; head -c 1048576 /dev/zero >&2; exit 3"
    assert ask_hook(make_hook(body), QUESTION).code == 3
    assert capfd.readouterr() == ("", "")


def test_stdin_need_not_be_read(make_hook) -> None:
    """A hook that exits without reading a large question is judged by its exit code."""
    question = replace(QUESTION, args=("x" * 100_000,))
    for code in (0, 3):
        assert ask_hook(make_hook(f"exit {code}"), question).code == code
        assert ask_hook(make_hook(f"exec 0<&-; exit {code}"), question).code == code


def test_a_background_child_that_keeps_the_streams_is_not_waited_for(make_hook) -> None:
    """A daemon started by the hook neither delays nor changes the answer."""
    started = time.monotonic()
    assert ask_hook(make_hook("sleep 1000 & exit 0"), QUESTION).is_allowed
    assert time.monotonic() - started < 300


def _answer(make_hook, question: HookQuestion, tmp_path: Path, **changes) -> tuple[dict[str, str], dict]:
    out = tmp_path / "told"
    out.mkdir(exist_ok=True)
    made = replace(make_hook(f"env -0 > {out}/env; cat > {out}/stdin"), **changes)
    assert ask_hook(made, question).is_allowed
    pairs = (out / "env").read_bytes().decode().split("\0")
    variables = dict(pair.split("=", 1) for pair in pairs if pair)
    return variables, json.loads((out / "stdin").read_text())


def test_the_question_is_told_exactly(make_hook, tmp_path: Path) -> None:
    """Every variable and every key of stdin has its value."""
    variables, document = _answer(make_hook, QUESTION, tmp_path)
    told = {name.removeprefix("ENVEXEC_"): text for name, text in variables.items() if "ENVEXEC_" in name}
    assert told == {
        "ACTION": "run", "SCRIPT": "pg-backup", "HOSTS": "db-01,db-02",
        "ARGS": '--database my app a"b\n', "ARGS_JSON": json.dumps(["--database", "my app", 'a"b\n']),
        "USERNAME": "alice", "TOKEN": "s3cret", "SOURCE_IP": "192.0.2.7",
        "TIMESTAMP": "2026-01-15T12:00:00Z", "DISPATCHER": "main", "DISPATCHER_SERIAL": "0a1b",
        "REQID": "00112233445566aa", "SUBMITTER": "bob", "SUBMITTER_IP": "192.0.2.8", "VIA": "http",
        "AUTH": "claimed", "OMITTED": "",
    }  # fmt: skip
    assert document == {
        "action": "run", "script": "pg-backup", "hosts": ["db-01", "db-02"],
        "args": ["--database", "my app", 'a"b\n'], "username": "alice", "token": "s3cret",
        "source_ip": "192.0.2.7", "timestamp": "2026-01-15T12:00:00Z", "dispatcher": "main",
        "dispatcher_serial": "0a1b", "reqid": "00112233445566aa", "submitter": "bob",
        "submitter_ip": "192.0.2.8", "via": "http", "auth": "claimed",
    }  # fmt: skip


def test_all_variables_are_always_set(make_hook, tmp_path: Path) -> None:
    """An empty question sets them all, and nothing of ours leaks in."""
    variables, _ = _answer(make_hook, HookQuestion(action="api", timestamp=""), tmp_path)
    shell = {"PWD", "SHLVL", "_", "OLDPWD"}
    assert {name for name in variables if not name.startswith("ENVEXEC_")} - shell == {"PATH"}
    assert {name.removeprefix("ENVEXEC_") for name in variables if name.startswith("ENVEXEC_")} == NAMES
    assert variables["ENVEXEC_USERNAME"] == ""


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"args": ("x" * 131_000,) * 2}, "ENVEXEC_ARGS"),
        ({"token": "t" * VARIABLE_LIMIT_BYTES}, "ENVEXEC_TOKEN"),
        ({"hosts": tuple(f"host-{number:05d}" for number in range(20_000))}, "ENVEXEC_HOSTS"),
        ({"username": "ä" * 66_000}, "ENVEXEC_USERNAME"),
    ],
)
def test_a_variable_that_is_too_large_is_refused_by_name(make_hook, change, name: str) -> None:
    """Nothing is started when the kernel could not take a variable."""
    with pytest.raises(PayloadError, match=name) as caught:
        ask_hook(make_hook("exit 0"), replace(QUESTION, **change))
    assert caught.value.field == name


def test_large_on_stdin_omits_the_variable_and_names_it(make_hook, tmp_path: Path) -> None:
    """With auth_hook_large = stdin the hook finds all of it on stdin."""
    args = ("x" * 131_000, "y" * 131_000, "z")
    variables, document = _answer(
        make_hook, replace(QUESTION, args=args), tmp_path, passes_large_on_stdin=True
    )
    assert variables["ENVEXEC_OMITTED"] == "ENVEXEC_ARGS,ENVEXEC_ARGS_JSON"
    assert "ENVEXEC_ARGS" not in variables
    assert variables["ENVEXEC_USERNAME"] == "alice"
    assert document["args"] == list(args)


def test_the_largest_variable_the_kernel_takes_is_passed(make_hook, tmp_path: Path) -> None:
    """The limit is the kernel's, to the byte."""
    largest = "t" * (VARIABLE_LIMIT_BYTES - len("ENVEXEC_TOKEN="))
    variables, _ = _answer(make_hook, replace(QUESTION, token=largest), tmp_path)
    assert variables["ENVEXEC_TOKEN"] == largest
    with pytest.raises(PayloadError):
        ask_hook(make_hook("exit 0"), replace(QUESTION, token=largest + "t"))


@pytest.mark.parametrize("text", ["a\0b", "\ud800"])
def test_text_that_no_program_can_be_given_is_named(make_hook, text: str) -> None:
    """NUL and half a surrogate pair are refused as bad input, not as an error of ours."""
    with pytest.raises(InvalidInputError, match="ENVEXEC_USERNAME"):
        ask_hook(make_hook("exit 0"), replace(QUESTION, username=text))


@pytest.mark.parametrize("disposition", [signal.SIG_IGN, lambda *_: os.waitpid(-1, os.WNOHANG)])
def test_sigchld_of_the_caller_never_turns_a_denial_into_a_yes(make_hook, disposition) -> None:
    """With SIGCHLD ignored, or handled by a reaper that steals the status, denying hooks deny."""
    hook = make_hook("exit 3")

    def work() -> int:
        signal.signal(signal.SIGCHLD, disposition)
        verdicts = [ask_hook(hook, QUESTION).is_allowed for _ in range(10)]
        return 1 if any(verdicts) else 42

    assert wait_status(fork_child(work), timeout_s=60) == (42, 0)


def test_the_environment_is_built_up(tmp_path: Path) -> None:
    """PATH, HOME, LANG, TZ and what is let through; the file wins over the daemon's environment."""
    path = tmp_path / "env"
    path.write_text('# tokens\n\nAUTH_URL="https://auth.example.net/"\nEMPTY=\nUNUSED=1\n')
    path.chmod(0o600)
    inherited = {
        "LANG": "C.UTF-8",
        "TZ": "UTC",
        "AUTH_URL": "x",
        "PATH": "/evil",
        "LD_PRELOAD": "e",
        "OTHER": "o",
    }
    found = hook_environment(("AUTH_URL", "EMPTY", "OTHER", "ABSENT"), str(path), inherited, "/home/service")
    assert dict(found) == {
        "PATH": DEFAULT_PATH, "HOME": "/home/service", "LANG": "C.UTF-8", "TZ": "UTC",
        "AUTH_URL": "https://auth.example.net/", "EMPTY": "", "OTHER": "o",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["LD_PRELOAD", "LD_LIBRARY_PATH", "PYTHONPATH", "ENVEXEC_TOKEN"])
def test_names_that_change_how_programs_load_are_refused(name: str) -> None:
    """Neither the loader's variables nor our own can be let through."""
    with pytest.raises(ConfigError, match=name):
        hook_environment((name,), "", {name: "x"}, "/")


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_an_environment_file_that_others_may_write_is_refused(tmp_path: Path, mode: int) -> None:
    """Who can write that file could choose what the hook believes."""
    path = tmp_path / "env"
    path.write_text("A=b\n")
    path.chmod(mode)
    with pytest.raises(ConfigError, match="writable"):
        hook_environment(("A",), str(path), {}, "/")


@pytest.mark.parametrize("content", ["no equals\n", "1A=b\n", "=b\n"])
def test_a_bad_environment_file_names_its_line(tmp_path: Path, content: str) -> None:
    """The line is named."""
    path = tmp_path / "env"
    path.write_text("# first\n" + content)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match=":2:"):
        hook_environment((), str(path), {}, "/")
    with pytest.raises(ConfigError):
        hook_environment((), str(tmp_path / "absent"), {}, "/")


@settings(max_examples=25, deadline=None)
@given(
    args=st.lists(
        st.text(st.characters(blacklist_characters="\0", blacklist_categories=("Cs",))), max_size=5
    ),
    username=st.text(st.characters(blacklist_characters="\0", blacklist_categories=("Cs",))),
)
def test_any_text_arrives_as_it_was(args: list[str], username: str, tmp_path_factory) -> None:
    """Arguments and names of any Unicode reach the hook unchanged, in both ways."""
    directory = tmp_path_factory.mktemp("hook")
    hook = directory / "hook"
    hook.write_text(
        f"#!{sys.executable} -IS\nimport json, os, sys\n"
        "told = json.load(sys.stdin)\n"
        "args = json.loads(os.environ['ENVEXEC_ARGS_JSON'])\n"
        "name = os.fsencode(os.environ['ENVEXEC_USERNAME']).decode()\n"
        "sys.exit(0 if args == told['args'] and name == told['username'] else 3)\n"
    )
    hook.chmod(0o755)
    question = replace(QUESTION, args=tuple(args), username=username)
    assert ask_hook(HookSettings(str(hook)), question).is_allowed
