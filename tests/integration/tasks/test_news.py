"""News of executions, made by a real scheduler, at real receivers of every kind."""

from __future__ import annotations

import base64
import hmac
import itertools
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.tasks.test_executions import command, ended, start
from tests.support.mailbox import Mailbox, mailbox
from tests.support.office import PROJECT, Office
from tests.support.polling import eventually
from tests.support.receiver import Receiver, receiver

_numbers = itertools.count(1)
SECRET = "whsec_" + base64.b64encode(b"a key of more than sixteen bytes").decode()


@pytest.fixture(scope="module")
def desk() -> Iterator[Receiver]:
    """Where HTTP arrives."""
    with receiver() as opened:
        yield opened


@pytest.fixture(scope="module")
def box() -> Iterator[Mailbox]:
    """Where mail arrives."""
    with mailbox() as opened:
        yield opened


@pytest.fixture(scope="module")
def works(tmp_path_factory: pytest.TempPathFactory, box: Mailbox) -> Iterator[Office]:
    """An office with a scheduler that may reach loopback."""
    made = Office(tmp_path_factory.mktemp("news"))
    made.write_conf(
        {
            "api_auth_default": None, "tasks.outgoing_allow": "127.0.0.0/8", "tasks.smtp_host": "127.0.0.1",
            "tasks.smtp_port": box.port, "tasks.smtp_security": "none", "tasks.smtp_from": "ctrl-exec@example.net",
        }
    )  # fmt: skip
    try:
        made.start_api()
        made.start_scheduler()
        yield made
    finally:
        made.close()


def notifier(
    works: Office, kind: str, settings: dict[str, Any] | None = None, secret: str | None = None
) -> str:
    """A notifier; its id."""
    body: dict[str, Any] = {"projectId": PROJECT, "name": f"{kind} {next(_numbers)}", "kind": kind}
    body |= {} if settings is None else {"settings": settings}
    body |= {} if secret is None else {"secret": secret}
    made = works.ask("POST", "/api/v1/notifiers", body)
    assert made.status == 201, made.body
    return str(made.json["notifierId"])


def telling(works: Office, line: str, *notifier_ids: str, events: tuple[str, ...] = ("ON_FAILURE",)) -> str:
    """A task that tells notifiers; its id."""
    return command(works, line, taskNotifierMap={each: {"events": list(events)} for each in notifier_ids})


def test_every_kind_gets_its_form(works: Office, desk: Receiver, box: Mailbox) -> None:
    """The same failure, told to all of them."""
    made = [
        *(
            notifier(works, each, secret=f"{desk.url}/{each}")
            for each in ("SLACK", "MATTERMOST", "DISCORD", "TEAMS")
        ),
        notifier(works, "NTFY", {"url": f"{desk.url}/NTFY"}, "tk_ntfysecret"),
        notifier(works, "WEBHOOK", {"url": f"{desk.url}/WEBHOOK"}, SECRET),
        notifier(works, "EMAIL", {"to": ["ops@example.net", "boss@example.net"]}),
    ]
    execution_id = start(works, telling(works, "exit 3", *made))
    ended(works, execution_id)
    kinds = ("SLACK", "MATTERMOST", "DISCORD", "TEAMS", "NTFY", "WEBHOOK")
    eventually(lambda: all(desk.at(f"/{each}") for each in kinds) and box.messages, timeout_s=60)
    found = {each: desk.at(f"/{each}")[0] for each in kinds}
    for kind, path in (("SLACK", "text"), ("MATTERMOST", "text"), ("DISCORD", "content")):
        text = json.loads(found[kind].body)[path]
        assert "FAILED, exit 3" in text
        assert execution_id in text
    card = json.loads(found["TEAMS"].body)["attachments"][0]["content"]
    assert execution_id in card["body"][0]["text"]
    assert found["NTFY"].headers["authorization"] == "Bearer tk_ntfysecret"
    assert found["NTFY"].headers["priority"] == "high"
    assert execution_id in found["NTFY"].body.decode()
    hook = found["WEBHOOK"]
    signed = f"{hook.headers['webhook-id']}.{hook.headers['webhook-timestamp']}.".encode() + hook.body
    key = base64.b64decode(SECRET.removeprefix("whsec_"))
    expected = "v1," + base64.b64encode(hmac.digest(key, signed, "sha256")).decode()
    assert hook.headers["webhook-signature"] == expected
    document = json.loads(hook.body)
    assert (document["type"], document["data"]["exitCode"]) == ("execution.failure", 3)
    sender, recipients, message = box.messages[0]
    assert (sender, recipients) == ("ctrl-exec@example.net", ("ops@example.net", "boss@example.net"))
    assert "failed" in message
    assert len(box.messages) == 1
    with works.store() as store:
        marks = ", ".join("?" * len(made))
        waiting = f"SELECT 1 FROM notices WHERE notifier_id IN ({marks})"
        eventually(lambda: store.row(waiting, made) is None)
        audit = "".join(str(tuple(row)) for row in store.rows("SELECT before, after FROM audit"))
    logs = "".join(each.read_text() for each in works.home.glob("*.log"))
    assert logs
    for secret in ("tk_ntfysecret", SECRET, "/SLACK"):
        assert secret not in audit + logs


def test_a_dead_receiver_delays_nobody(works: Office, desk: Receiver) -> None:
    """It takes connections and says nothing; the others' news come meanwhile, and the execution ends."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        dead = notifier(works, "WEBHOOK", {"url": f"http://127.0.0.1:{silent.getsockname()[1]}/dead"})
        alive = notifier(works, "WEBHOOK", {"url": f"{desk.url}/alive"})
        task_id = telling(works, "true", dead, alive, events=("ON_START", "ON_END"))
        assert ended(works, start(works, task_id))["status"] == "SUCCESS"
        eventually(lambda: len(desk.at("/alive")) == 2, timeout_s=60)
        kinds = [json.loads(each.body)["type"] for each in desk.at("/alive")]
        assert kinds == ["execution.start", "execution.end"]
        with works.store() as store:
            waiting = store.rows("SELECT event FROM notices WHERE notifier_id = ?", (dead,))
        assert len(waiting) == 2


def test_a_notifier_is_tested_at_once(works: Office, desk: Receiver, box: Mailbox) -> None:
    """What came of it is the answer, without what is secret; only managers may."""

    def tested(notifier_id: str, by: str = "manager") -> Any:
        answer = works.ask("POST", f"/api/v1/notifiers/{notifier_id}/test", by=by)
        assert answer.status == 200, answer.body
        return answer.json

    hook = notifier(works, "WEBHOOK", {"url": f"{desk.url}/test"}, SECRET)
    assert tested(hook) == {"sentFg": True, "error": None}
    assert json.loads(desk.at("/test")[0].body)["type"] == "execution.test"
    count = len(box.messages)
    assert tested(notifier(works, "EMAIL", {"to": ["test@example.net"]}))["sentFg"]
    assert box.messages[count][1] == ("test@example.net",)
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    chat = notifier(works, "SLACK", secret=f"http://127.0.0.1:{port}/verysecretpart")
    refused = tested(chat)
    assert not refused["sentFg"]
    assert "127.0.0.1" in refused["error"]
    assert "verysecretpart" not in refused["error"]
    for by, status in (("executor", 403), ("stranger", 404)):
        assert works.ask("POST", f"/api/v1/notifiers/{hook}/test", by=by).status == status


def test_mail_that_is_refused_says_how(tmp_path: Path) -> None:
    """The server's code, not its words; and without a server there is no mail."""
    with mailbox("550 no such user: ops@example.net") as full:
        office = Office(tmp_path)
        office.write_conf(
            {
                "api_auth_default": None, "tasks.smtp_host": "127.0.0.1", "tasks.smtp_port": full.port,
                "tasks.smtp_security": "none", "tasks.smtp_from": "ctrl-exec@example.net",
            }
        )  # fmt: skip
        try:
            office.start_api()
            made = notifier(office, "EMAIL", {"to": ["ops@example.net"]})
            answer = office.ask("POST", f"/api/v1/notifiers/{made}/test").json
            assert answer == {"sentFg": False, "error": "the mail server takes none of the recipients"}
            assert not full.messages
        finally:
            office.close()
