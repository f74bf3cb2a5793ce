"""The one decision on who may do what, and that it is no unless something says yes."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ctrl_exec.common.errors import ConfigError, DeniedError
from ctrl_exec.common.hook import HookSettings
from ctrl_exec.common.log import Log
from ctrl_exec.services.authority import Authority, AuthoritySettings, Caller, Submitter

LOCAL = ("cli", "socket", "scheduler")
REMOTE = ("http", "webhook", "ui")


class Desk:
    """An authority with its log."""

    def __init__(self, **settings) -> None:
        self.lines = io.StringIO()
        self.authority = Authority(AuthoritySettings(**settings), Log("test", stream=self.lines))

    def may(self, caller: Caller, action: str = "run", **facts) -> bool:
        try:
            self.authority.check(caller, action, **facts)
        except DeniedError:
            return False
        return True


@pytest.fixture
def hook(tmp_path: Path) -> Callable[[str], Callable[[], HookSettings]]:
    def make(body: str, timeout_s: float = 20.0) -> Callable[[], HookSettings]:
        path = tmp_path / "hook"
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)
        return lambda: HookSettings(str(path), timeout_s=timeout_s)

    return make


@pytest.mark.parametrize("via", REMOTE)
@pytest.mark.parametrize(
    ("default", "allowed"), [("deny", False), ("allow", True), ("token", False), ("odd", False)]
)
def test_without_a_hook_the_default_governs_remote_callers(via, default: str, allowed: bool) -> None:
    """Deny is the default of the default."""
    desk = Desk(default=default)
    assert desk.may(Caller(via=via)) is allowed
    assert Desk().may(Caller(via=via)) is False


@pytest.mark.parametrize("via", LOCAL)
@pytest.mark.parametrize("default", ["deny", "allow", "token"])
def test_without_a_hook_local_callers_are_guarded_by_file_permissions(via, default: str) -> None:
    """The CLI and the socket are open where no hook is set."""
    assert Desk(default=default).may(Caller(via=via))


def test_want_of_a_hook_is_said_before_anything_else() -> None:
    """What is denied whatever is asked can be asked for alone, with advice."""
    with pytest.raises(DeniedError, match="no auth hook configured") as caught:
        Desk().authority.require_open(Caller())
    assert (caught.value.code, caught.value.reason) == (1, "denied")
    Desk(default="allow").authority.require_open(Caller())
    Desk(default="token").authority.require_open(Caller())
    Desk().authority.require_open(Caller(via="cli"))


def test_token_default_asks_the_task_layer() -> None:
    """Its judgement is taken as it is."""

    def judge(caller: Caller, action: str, _submitter: Submitter | None) -> None:
        if (caller.token, action) != ("ctpat_good", "run"):
            raise DeniedError(3, "insufficient privilege")

    desk = Desk(default="token", token_check=judge)
    assert desk.may(Caller(token="ctpat_good"))
    assert not desk.may(Caller(token="ctpat_bad"))
    assert not desk.may(Caller(token="ctpat_good"), "cancel")


@pytest.mark.parametrize("via", [*LOCAL, *REMOTE])
def test_a_hook_governs_everyone(hook, via) -> None:
    """With a hook the CLI is asked for too, and no default overrides it."""
    assert Desk(hook=hook("exit 0")).may(Caller(via=via))
    assert not Desk(hook=hook("exit 1"), default="allow").may(Caller(via=via))


@pytest.mark.parametrize(("code", "expected"), [(1, 1), (2, 2), (3, 3), (7, 1)])
def test_the_reason_is_told(hook, code: int, expected: int) -> None:
    """Code and reason reach the caller, and the log without the token."""
    desk = Desk(hook=hook(f"exit {code}"))
    with pytest.raises(DeniedError) as caught:
        desk.authority.check(Caller(username="eve\nACTION=auth CODE=0", token="s3cret"), "run")
    assert caught.value.code == expected
    text = desk.lines.getvalue()
    assert f"CODE={expected}" in text
    assert f'CAUSE="exit {code}"' in text
    assert text.count("\n") == 1
    assert "s3cret" not in text


def test_a_timeout_has_its_own_line(hook) -> None:
    """Denied, and said as auth-hook-timeout."""
    desk = Desk(hook=hook("sleep 1000", timeout_s=0.2))
    assert not desk.may(Caller())
    assert "ACTION=auth-hook-timeout" in desk.lines.getvalue()


def test_a_hook_that_can_not_be_prepared_denies() -> None:
    """An environment file that can't be trusted denies and is logged."""

    def broken() -> HookSettings:
        raise ConfigError("auth_hook_env_file is bad")

    desk = Desk(hook=broken)
    assert not desk.may(Caller(via="cli"))
    assert "auth_hook_env_file is bad" in desk.lines.getvalue()


def test_everything_is_told(hook, tmp_path: Path) -> None:
    """The question holds the caller, the object and the dispatcher."""
    desk = Desk(
        hook=hook(f"cat > {tmp_path}/told"), dispatcher="main", dispatcher_serial=lambda: "0a", default="deny"
    )
    caller = Caller("alice", "tok", "192.0.2.1", "socket", "peer", "tok")
    desk.authority.check(
        caller,
        "run",
        script="job",
        hosts=("a", "b"),
        args=("x",),
        reqid="0" * 16,
        submitter=Submitter("bob", "192.0.2.9"),
    )
    told = json.loads((tmp_path / "told").read_text())
    assert told.pop("timestamp").endswith("Z")
    assert told == {
        "action": "run", "script": "job", "hosts": ["a", "b"], "args": ["x"], "username": "alice",
        "token": "tok", "source_ip": "192.0.2.1", "dispatcher": "main", "dispatcher_serial": "0a",
        "reqid": "0" * 16, "submitter": "bob", "submitter_ip": "192.0.2.9", "via": "socket", "auth": "peer",
    }  # fmt: skip


def test_a_proven_token_is_not_given_to_the_hook(hook, tmp_path: Path) -> None:
    """A token of the task layer has been judged already: the hook sees the name alone."""
    desk = Desk(hook=hook(f"cat > {tmp_path}/told"))
    desk.authority.check(Caller("alice", "ctpat_x", auth="token"), "run")
    told = json.loads((tmp_path / "told").read_text())
    assert (told["username"], told["token"], told["auth"]) == ("alice", "", "token")


@pytest.mark.parametrize(
    ("forwards", "given", "expected"),
    [
        (True, "site-token", "site-token"),
        (True, "", ""),
        (False, "site-token", ""),
        (True, "ctpat_x", ""),
        (True, "ctoat_x", ""),
        (True, "ctpair_x", ""),
    ],
)
def test_forwarding(forwards: bool, given: str, expected: str) -> None:
    """Agents get the token of the body only, never one of ours, and none where forwarding is off."""
    desk = Desk(forwards_token=forwards)
    assert desk.authority.forwarded_token(Caller(token="header", forwarded_token=given)) == expected
    assert desk.authority.forwarded_token(Caller(token="header")) == ""


@pytest.mark.parametrize(
    ("body", "answer"),
    [
        ("exit 0", True),
        ("exit 1", False),
        ("exit 3", False),
        ("exit 2", None),
        ("exit 9", None),
        ("kill -9 $$", None),
    ],
)
def test_only_a_judgement_of_the_object_hides_it(hook, body: str, answer: bool | None) -> None:
    """Exit 1 and 3 mean "not this one"; bad credentials and failures of the hook are plain denials."""
    desk = Desk(hook=hook(body))
    facts = {"reqid": "0" * 16, "script": "job", "submitter": Submitter("bob")}
    if answer is None:
        with pytest.raises(DeniedError):
            desk.authority.sees(Caller(), "status", **facts)
    else:
        assert desk.authority.sees(Caller(), "status", **facts) is answer


def test_seeing_without_a_hook(hook) -> None:
    """The default governs what may be seen as it governs everything."""
    facts = {"reqid": "0" * 16, "script": "job", "submitter": Submitter("bob")}
    assert Desk(default="allow").authority.sees(Caller(), "status", **facts)
    assert Desk().authority.sees(Caller(via="cli"), "status", **facts)
    with pytest.raises(DeniedError):
        Desk().authority.sees(Caller(), "status", **facts)
