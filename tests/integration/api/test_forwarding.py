"""Where a secret goes that a caller shows: to the hook, to agents only from the body, nowhere else."""

from __future__ import annotations

import base64
import contextlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.fleet import Fleet
from tests.support.polling import eventually

SECRET = "s3cret-of-alice"


def token_at_the_agent(fleet: Fleet, document: dict[str, object], **headers: str) -> str:
    """What the script finds as `token` on its standard input."""
    body = {"hosts": ["host-a"], "script": "stdin"} | document
    answer: Any = fleet.http("POST", "/run", body, headers=headers).json
    (result,) = answer["results"]
    assert result["state"] == "ok", result
    found = json.loads(result["stdout"])["token"]
    assert isinstance(found, str)
    return found


def command_lines() -> Iterator[bytes]:
    """What `ps` can show of every process there is."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            yield path.read_bytes()


def test_only_a_token_of_the_body_goes_on_to_agents(fleet: Fleet) -> None:
    basic = "Basic " + base64.b64encode(f"alice:{SECRET}".encode()).decode()
    assert token_at_the_agent(fleet, {"token": SECRET}) == SECRET
    assert token_at_the_agent(fleet, {}, Authorization=f"Bearer {SECRET}") == ""
    assert token_at_the_agent(fleet, {}, Authorization=basic) == ""
    assert token_at_the_agent(fleet, {"token": SECRET}, Authorization=f"Bearer {SECRET}") == SECRET


def test_a_token_of_ours_never_goes_on(own_fleet: Fleet) -> None:
    assert own_fleet.cli("user", "add", "ci", "--admin", "--no-password").returncode == 0
    token = own_fleet.cli("token", "create", "own", "--username", "ci").stdout.strip()
    own_fleet.start_api()
    assert token_at_the_agent(own_fleet, {"token": token}) == ""
    assert token_at_the_agent(own_fleet, {"token": f"ctpair_{SECRET}"}) == ""


@pytest.mark.parametrize("prefix", ["ctpat_", "ctoat_"])
def test_a_token_of_ours_that_is_not_known_is_refused_first(fleet: Fleet, prefix: str) -> None:
    wish = {"hosts": ["host-a"], "script": "stdin", "token": f"{prefix}{SECRET}"}
    assert fleet.http("POST", "/run", wish).status == 401


def test_nothing_goes_on_where_the_settings_say_so(own_fleet: Fleet) -> None:
    own_fleet.write_conf({"forward_token": "never"})
    own_fleet.start_api()
    assert token_at_the_agent(own_fleet, {"token": SECRET}) == ""
    document: Any = own_fleet.cli_json("run", "host-a", "stdin", env={"ENVEXEC_TOKEN": SECRET})
    assert json.loads(document["results"][0]["stdout"])["token"] == ""


def test_a_token_is_in_no_log_no_record_and_no_command_line(own_fleet: Fleet, gate: Path) -> None:
    """Also while the run goes on, and where it is denied: `ps` and the files show nothing of it."""
    hook = own_fleet.home / "hook"
    hook.write_text(f'#!/bin/sh\n[ "$ENVEXEC_TOKEN" = {SECRET} ] || exit 2\n')
    hook.chmod(0o755)
    own_fleet.write_conf({"auth_hook": hook})
    own_fleet.start_api()
    wish = {"hosts": ["host-a"], "script": "gate", "args": [str(gate)], "token": SECRET, "username": "alice"}
    answers = []
    caller = threading.Thread(target=lambda: answers.append(own_fleet.http("POST", "/run", wish)))
    caller.start()
    eventually(lambda: [each for each in own_fleet.records() if each["state"] == "running"])
    assert not [each for each in command_lines() if SECRET.encode() in each]
    gate.touch()
    caller.join(60)
    assert answers[0].status == 200
    denied = f"{SECRET}-but-wrong"
    assert own_fleet.http("GET", "/health", headers={"Authorization": f"Bearer {denied}"}).status == 403
    assert own_fleet.cli("ping", "host-a", env={"ENVEXEC_TOKEN": denied}).returncode == 3
    made = own_fleet.cli("run", "host-a", "hello", env={"ENVEXEC_TOKEN": SECRET})
    assert made.returncode == 0
    assert SECRET not in made.stdout + made.stderr
    ours = [path for path in own_fleet.home.rglob("*") if path.is_file() and path != hook]
    assert len(ours) > 20
    assert [str(path) for path in ours if SECRET.encode() in path.read_bytes()] == []
