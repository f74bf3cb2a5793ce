"""`ctrl-exec doctor`: every usual mistake is found and comes with its remedy."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.cli.instance import Instance
from tests.support.fleet import Fleet
from tests.support.processes import run


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[Instance]:
    """A dispatcher of its own, to be broken by the test."""
    made = Instance(tmp_path)
    yield made
    made.close()


def findings(instance: Instance, *words: str) -> list[dict[str, str]]:
    """What the doctor found, the good aside."""
    found: dict[str, Any] = instance.document("doctor", *words, code=1)
    assert found["ok"] is False
    assert found["problems"] == sum(each["level"] == "problem" for each in found["findings"])
    return [each for each in found["findings"] if each["level"] != "ok"]


def found_about(instance: Instance, check: str, *words: str) -> dict[str, str]:
    """The one finding on this check."""
    about = [each for each in findings(instance, *words) if each["check"] == check]
    assert len(about) == 1, about
    return about[0]


def test_a_sound_instance_has_no_problem(shared: Instance, tmp_path: Path) -> None:
    """Without agents that lie: exit 0, as text and as a document."""
    made = Instance(tmp_path)
    made.fleet.add("web-01")
    try:
        made.start()
        found = made.document("doctor")
        assert (found["ok"], found["problems"]) == (True, 0)
        assert {"level": "ok", "check": "agents", "detail": "1 agent of 1 answered", "remedy": ""} in found[
            "findings"
        ]
        ended = made.cli("doctor")
        assert ended.returncode == 0
        assert ended.stdout.startswith("ok       configuration: ")
        assert all(each["level"] == "ok" or each["remedy"] for each in found["findings"])
    finally:
        made.close()


def test_agents_that_do_not_answer_come_with_the_reason(instance: Instance) -> None:
    """One finding for each, with a remedy that fits its failure."""
    instance.fleet.add("web-01")
    instance.fleet.add("liar", lie="reset late")
    instance.fleet.add("gone", lie="reset")
    instance.start()
    by_name = {each["check"]: each for each in findings(instance)}
    assert "agent liar" in by_name
    assert "agent gone" in by_name
    assert all(each["remedy"] for each in by_name.values())
    assert "agent web-01" not in by_name


def test_a_missing_or_wrong_configuration(tmp_path: Path) -> None:
    """Even then it answers, with the line."""
    path = tmp_path / "c.conf"
    ended = run("ctrl-exec", "--config", path, "doctor")
    assert ended.returncode == 1
    assert (
        f"problem  configuration: {path}: No such file or directory\n         -> `make inst" in ended.stdout
    )
    assert ended.stderr.splitlines() == ["1 problem, 0 warnings"]
    path.write_text("api_prot = 1\n")
    ended = run("ctrl-exec", "--config", path, "doctor")
    assert f"problem  configuration: {path}:1: unknown key 'api_prot'" in ended.stdout


def test_a_configuration_that_others_can_write(instance: Instance) -> None:
    """Whoever writes it chooses the hook."""
    instance.configure()
    instance.conf.chmod(0o666)
    about = found_about(instance, "configuration", "--local")
    assert about["remedy"] == f"chmod go-w {instance.conf}"


def test_missing_setup_names_the_command(instance: Instance) -> None:
    """No CA, no identity, no state directory."""
    instance.configure(
        cert=instance.home / "none.crt",
        key=instance.home / "none.key",
        ca=instance.home / "no-ca.crt",
        state_dir=instance.home / "nowhere",
    )
    found = {each["check"]: each["remedy"] for each in findings(instance, "--local")}
    assert found["CA certificate"] == "run `ctrl-exec setup-ca`"
    assert found["dispatcher certificate"] == "run `ctrl-exec setup-ctrl-exec`"
    assert found["state directory"] == "run `ctrl-exec setup-ctrl-exec`"


def test_a_ca_key_that_others_can_read(instance: Instance) -> None:
    """The one file that must not leak."""
    instance.configure()
    key = instance.home / "etc" / "ca.key"
    key.write_text("x")
    key.chmod(0o644)
    assert found_about(instance, "CA key", "--local")["remedy"] == f"chmod 600 {key}"


def test_expired_and_mismatched_certificates(instance: Instance) -> None:
    """Dates by this machine's clock; a key of another certificate."""
    authority = instance.fleet.authority
    expired = authority.issue("old", starts_days=-9, days=-1)
    early = authority.issue("early", starts_days=1, days=9)
    soon = authority.issue("soon", days=5)
    instance.configure(cert=expired.pem, key=expired.pem)
    assert "expired on" in found_about(instance, "dispatcher certificate", "--local")["detail"]
    instance.configure(cert=early.pem, key=early.pem)
    about = found_about(instance, "dispatcher certificate", "--local")
    assert "not valid before" in about["detail"]
    assert "clock" in about["remedy"]
    instance.configure(cert=instance.fleet.identity.pem, key=soon.pem)
    assert found_about(instance, "dispatcher certificate", "--local")["remedy"].startswith("use the key")
    instance.configure(key=instance.fleet.identity.pem, api_cert=soon.pem, api_key=soon.pem)
    found = [
        each
        for each in instance.document("doctor", "--local")["findings"]
        if each["check"] == "API certificate"
    ]
    assert [each["level"] for each in found] == ["warning"]


@pytest.mark.parametrize(
    ("text", "mode", "detail"),
    [
        (None, 0, "No such file or directory"),
        ("#!/bin/sh\n", 0o666, "can be changed by others"),
        ("#!/nonexistent/python\n", 0o755, "no interpreter /nonexistent/python"),
        ("#!\n", 0o755, "an empty #! line"),
    ],
)
def test_a_hook_that_cannot_work(instance: Instance, text: str | None, mode: int, detail: str) -> None:
    """Missing, writable by others, without its interpreter."""
    hook = instance.home / "hook"
    if text is not None:
        hook.write_text(text)
        hook.chmod(mode | 0o111)
    instance.configure(auth_hook=hook)
    about = found_about(instance, "auth hook", "--local")
    assert detail in about["detail"]
    assert about["remedy"]


def test_a_hook_that_is_not_executable_for_the_service_user(instance: Instance) -> None:
    """Root may execute what its service user may not; the doctor looks with the user's eyes."""
    if os.geteuid() != 0:
        pytest.skip("needs root to look as somebody else")
    hook = instance.home / "hook"
    hook.write_text("#!/bin/sh\n")
    hook.chmod(0o700)
    instance.configure(auth_hook=hook, service_user="nobody")
    details = [each["detail"] for each in findings(instance, "--local") if each["check"] == "auth hook"]
    assert len(details) == 1
    assert details[0].startswith("nobody may not ")


def test_a_service_user_that_does_not_exist(instance: Instance) -> None:
    """Named with both remedies."""
    instance.configure(service_user="nobody-here")
    assert "set `service_user =` to nothing" in found_about(instance, "service user", "--local")["remedy"]


def test_a_port_that_is_taken(instance: Instance) -> None:
    """By a program that is not the API; and an address this machine does not have."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        instance.configure(api_port=port)
        about = found_about(instance, "API port", "--local")
        assert about["detail"] == f"127.0.0.1:{port} is taken by another program"
        assert f"ss -ltnp | grep :{port}" in about["remedy"]
    instance.configure(api_port=9, api_bind="192.0.2.1")
    assert found_about(instance, "API port", "--local")["detail"] == "192.0.2.1 is no address of this machine"


def test_an_open_api_without_tls_or_hook(instance: Instance) -> None:
    """What strangers could do is said before they do it."""
    instance.configure(api_bind="0.0.0.0", api_auth_default="allow")
    found = [each for each in findings(instance, "--local") if each["check"] == "API access"]
    assert [each["level"] for each in found] == ["problem", "warning"]
    assert "tokens can be read on the way" in found[1]["detail"]


def test_an_agent_whose_name_does_not_resolve(instance: Instance) -> None:
    """The remedy is the command that records the address."""
    instance.fleet.add("web-01")
    instance.start()
    path = instance.home / "state" / "agents" / "web-01.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"lookup_by": "hostname", "hostname": "web-01"}))
    about = found_about(instance, "agent web-01")
    assert "name resolution" in about["detail"]
    assert "edit-agent web-01 --lookup-by ip" in about["remedy"]


def test_agents_whose_clock_is_apart(instance: Instance) -> None:
    """Read from the answer's Date; an hour is named with its direction."""
    instance.fleet.add("early", date_shift_s=3600)
    instance.fleet.add("late", date_shift_s=-7200)
    instance.fleet.add("right")
    instance.start()
    found = {each["check"]: each for each in findings(instance)}
    assert "s ahead of this machine's" in found["agent early"]["detail"]
    assert "s behind this machine's" in found["agent late"]["detail"]
    assert "time service" in found["agent late"]["remedy"]
    assert "agent right" not in found


def test_records_that_expire_or_cannot_be_read(instance: Instance) -> None:
    """From the registry alone, before anybody is asked."""
    instance.fleet.add("old", expiry="Jan 15 12:00:00 2020 GMT")
    instance.fleet.add("odd", expiry="some day")
    instance.start()
    found = {each["check"]: each["detail"] for each in findings(instance)}
    assert found["agent old"] == "its certificate expired on Jan 15 12:00:00 2020 GMT"
    assert "no readable expiry" in found["agent odd"]


def test_an_api_that_runs_is_told_from_a_stranger(tmp_path: Path) -> None:
    """Our own daemon on the port is no problem, with a hook or without, whatever it answers."""
    fleet = Fleet(tmp_path, settings={"api_auth_default": "deny"})
    try:
        fleet.start_api()
        fleet.write_conf({"api_port": fleet.api_port})
        found = fleet.cli_json("doctor", "--local")
        details = [each["detail"] for each in found["findings"] if each["check"] == "API port"]  # type: ignore[index, union-attr]
        assert details == [f"ctrl-exec-api answers on 127.0.0.1:{fleet.api_port}"]
    finally:
        fleet.close()


def test_a_revoked_agent_is_named(instance: Instance) -> None:
    """With both ways out of it."""
    instance.fleet.add("web-01")
    instance.start()
    assert instance.cli("revoke", "web-01").returncode == 0
    about = [each for each in findings(instance) if each["check"] == "agent web-01"]
    assert about[0]["detail"] == "its key is revoked"
    assert "unpair web-01" in about[0]["remedy"]
