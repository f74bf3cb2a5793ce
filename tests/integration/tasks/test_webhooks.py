"""Webhooks: each sender's own scheme, what is not meant, what came before; and notifiers as objects."""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import hmac
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from ctrl_exec.tasks.execution.executions import find_execution, transition
from tests.support.fleet import Answer
from tests.support.office import PROJECT, Office

SECRET = "a secret of sixteen or more"
STANDARD_SECRET = "whsec_" + base64.b64encode(b"standard webhooks key").decode()
PUSH = {"ref": "refs/heads/main", "commits": [{"id": "c0ffee"}], "forced": False, "size": 2}
PARAMETERS = [
    {"name": "COMMIT", "type": "TEXT", "defaultValue": "none"}, {"name": "FORCED", "type": "CHECKBOX"},
    {"name": "SIZE", "type": "INTEGER", "max": 10},
]  # fmt: skip
MAPPING = {"COMMIT": "commits.0.id", "FORCED": "forced", "SIZE": "size"}


@pytest.fixture
def task(office: Office) -> Iterator[dict[str, Any]]:
    made = office.create_task(
        multipleExecutionPolicy="CONCURRENCY", maxConcurrency=100, parameters=PARAMETERS, by="manager"
    )
    yield made
    with office.store() as store:
        store.execute("DELETE FROM tasks WHERE task_id = ?", (made["taskId"],))


def add(office: Office, task: dict[str, Any], **more: Any) -> str:
    body = {"taskId": task["taskId"], "name": f"Hook {time.monotonic_ns()}", "secret": SECRET} | more
    made = office.ask("POST", "/api/v1/webhooks", body, by="manager")
    assert made.status == 201, made.body
    assert "secret" not in made.json
    return str(made.json["webhookId"])


def signed(scheme: str, body: bytes, **changes: Any) -> dict[str, str]:
    digest = hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
    event = changes.pop("event", "push")
    delivery = changes.pop("delivery", f"d-{time.monotonic_ns()}")
    found = {
        "GENERIC": {"Authorization": f"Bearer {SECRET}"},
        "GITHUB": {
            "X-Hub-Signature-256": f"sha256={digest}",
            "X-GitHub-Event": event,
            "X-GitHub-Delivery": delivery,
        },
        "GITLAB": {"X-Gitlab-Token": SECRET, "X-Gitlab-Event": event, "X-Gitlab-Event-UUID": delivery},
        "GITEA": {"X-Gitea-Signature": digest, "X-Gitea-Event": event, "X-Gitea-Delivery": delivery},
    }.get(scheme)
    if found is None:
        stamp = str(changes.pop("stamp", int(time.time())))
        key = base64.b64decode(STANDARD_SECRET.removeprefix("whsec_"))
        text = f"{delivery}.{stamp}.".encode() + body
        signature = base64.b64encode(hmac.new(key, text, hashlib.sha256).digest()).decode()
        found = {
            "webhook-id": delivery,
            "webhook-timestamp": stamp,
            "webhook-signature": f"v1,nonsense v1,{signature}",
        }
    return found | changes


def send(office: Office, webhook_id: str, headers: dict[str, str], body: object = None) -> Answer:
    payload = json.dumps(PUSH if body is None else body).encode()
    return office.http(
        "POST", f"/hooks/{webhook_id}", payload, headers={"Content-Type": "application/json", **headers}
    )


@pytest.mark.parametrize("scheme", ["GENERIC", "GITHUB", "GITLAB", "GITEA", "STANDARD"])
def test_a_genuine_delivery_starts_the_task_with_its_fields(
    office: Office, task: dict[str, Any], scheme: str
) -> None:
    secret = STANDARD_SECRET if scheme == "STANDARD" else SECRET
    webhook_id = add(office, task, scheme=scheme, secret=secret, branches=["mai*"], parameterMapping=MAPPING)
    body = json.dumps(PUSH).encode()
    started = send(office, webhook_id, signed(scheme, body))
    assert started.status == 202, started.body
    assert started.json["repeatedFg"] is False
    with office.store() as store:
        execution = find_execution(store, str(started.json["executionId"]))
    assert (execution.trigger, execution.user_id) == ("WEBHOOK", office.users["manager"])
    assert execution.parameter_map == {"COMMIT": "c0ffee", "FORCED": False, "SIZE": 2}
    # not without the secret, not with another body, not with another's
    for wrong in (
        {},
        signed("GENERIC", body, Authorization="Bearer x"),
        signed(scheme, b"{}") if scheme not in ("GENERIC", "GITLAB") else {},
    ):
        if wrong != signed(scheme, body):
            assert send(office, webhook_id, wrong).status == 401, wrong
    told = office.ask("GET", f"/api/v1/audit?objectId={execution.execution_id}").json["items"]
    assert [(each["action"], each["via"]) for each in told] == [("start", "webhook")]  # type: ignore[attr-defined]


def test_what_came_before_starts_nothing_again(office: Office, task: dict[str, Any]) -> None:
    webhook_id = add(office, task, scheme="GITHUB")
    headers = signed("GITHUB", json.dumps(PUSH).encode(), delivery="same")
    first, again = send(office, webhook_id, headers), send(office, webhook_id, headers)
    assert (again.status, again.json["repeatedFg"]) == (202, True)
    assert again.json["executionId"] == first.json["executionId"]
    standard = add(office, task, scheme="STANDARD", secret=STANDARD_SECRET)
    for stamp in (int(time.time()) - 400, int(time.time()) + 400, "x", "9" * 20):
        late = signed("STANDARD", json.dumps(PUSH).encode(), stamp=stamp)
        assert send(office, standard, late).status == 401, stamp


@pytest.mark.parametrize("secret", [STANDARD_SECRET, STANDARD_SECRET.removeprefix("whsec_").rstrip("=")])
def test_what_a_standard_library_signs_is_taken(office: Office, task: dict[str, Any], secret: str) -> None:
    """And nothing that it signed otherwise: with another key, for another body, another id or another time."""
    from standardwebhooks import Webhook

    webhook_id = add(office, task, scheme="STANDARD", secret=secret)
    body = json.dumps(PUSH).encode()
    now = dt.datetime.now(dt.UTC)

    def headers(
        sent_id: str, *, key: str = secret, at: dt.datetime = now, text: bytes = body
    ) -> dict[str, str]:
        signature = Webhook(key).sign(sent_id, at, text.decode())
        stamp = str(int(at.timestamp()))
        return {"webhook-id": sent_id, "webhook-timestamp": stamp, "webhook-signature": signature}

    started = send(office, webhook_id, headers("msg_1"))
    assert (started.status, started.json["repeatedFg"]) == (202, False)
    assert send(office, webhook_id, headers("msg_1")).json["repeatedFg"] is True
    late, early = now - dt.timedelta(minutes=6), now + dt.timedelta(minutes=6)
    other = base64.b64encode(b"another key").decode()
    for wrong in (
        headers("msg_2", key=other),
        headers("msg_2", text=b"{}"),
        headers("msg_2") | {"webhook-id": "msg_3"},
        headers("msg_2") | {"webhook-timestamp": str(int(now.timestamp()) + 1)},
        headers("msg_2", at=late),
        headers("msg_2", at=early),
        headers("msg_2")
        | {"webhook-signature": headers("msg_2")["webhook-signature"].replace("v1,", "v1a,")},
        {k: v for k, v in headers("msg_2").items() if k != "webhook-timestamp"},
    ):
        assert send(office, webhook_id, wrong).status == 401, wrong
    rotated = headers("msg_2", key=other)["webhook-signature"] + " " + headers("msg_2")["webhook-signature"]
    assert send(office, webhook_id, headers("msg_2") | {"webhook-signature": rotated}).status == 202


@pytest.mark.parametrize("scheme", ["GITHUB", "GITEA"])
def test_a_captured_delivery_starts_nothing_under_another_id(
    office: Office, task: dict[str, Any], scheme: str
) -> None:
    """Their signature covers the body alone: the body is known again, under any id, as any event."""
    webhook_id = add(office, task, scheme=scheme)
    body = json.dumps(PUSH).encode()
    first = send(office, webhook_id, signed(scheme, body))
    assert (first.status, first.json["repeatedFg"]) == (202, False)
    nameless = {k: v for k, v in signed(scheme, body).items() if not k.endswith("Delivery")}
    for replayed in (signed(scheme, body), signed(scheme, body, event="star"), nameless):
        again = send(office, webhook_id, replayed)
        assert (again.status, again.json["repeatedFg"]) == (202, True)
        assert again.json["executionId"] == first.json["executionId"]
    other = PUSH | {"size": 3}
    assert (
        send(office, webhook_id, signed(scheme, json.dumps(other).encode()), other).json["repeatedFg"]
        is False
    )
    # another webhook is another receiver; and after the window it is forgotten
    elsewhere = add(office, task, scheme=scheme)
    assert send(office, elsewhere, signed(scheme, body)).json["repeatedFg"] is False
    with office.store() as store:
        store.execute("UPDATE signed_bodies SET at_ns = at_ns - ?", (3 * 86_400 * 10**9 + 1,))
        store.execute("UPDATE deliveries SET at_ns = at_ns - ?", (3 * 86_400 * 10**9 + 1,))
    late = send(office, webhook_id, signed(scheme, body))
    assert late.json["repeatedFg"] is False
    with office.store() as store:
        kept = store.rows("SELECT execution_id FROM signed_bodies WHERE webhook_id = ?", (webhook_id,))
    executions = {each["execution_id"] for each in kept}
    assert late.json["executionId"] in executions
    assert first.json["executionId"] not in executions


def test_equal_deliveries_of_a_bearer_are_several(office: Office, task: dict[str, Any]) -> None:
    """Who knows the secret itself may send the same body as often as they like."""
    webhook_id = add(office, task)
    found = {str(send(office, webhook_id, signed("GENERIC", b"")).json["executionId"]) for _ in range(2)}
    assert len(found) == 2


def test_what_was_left_out_is_not_started_as_another_event(office: Office, task: dict[str, Any]) -> None:
    """The event's name is not signed; the sender's own second try, with the filters mended, is taken."""
    body = json.dumps(PUSH).encode()
    webhook_id = add(office, task, scheme="GITHUB", events=["release"])
    assert send(office, webhook_id, signed("GITHUB", body)).json["executionId"] is None
    forged = send(office, webhook_id, signed("GITHUB", body, event="release"))
    assert (forged.status, forged.json["executionId"]) == (200, None)
    assert "push" in str(forged.json["reason"])
    path = f"/api/v1/webhooks/{webhook_id}"
    assert office.ask("PATCH", path, {"events": ["release", "push"]}, by="manager").status == 200
    again = send(office, webhook_id, signed("GITHUB", body))
    assert (again.status, again.json["repeatedFg"]) == (202, False)
    repeated = send(office, webhook_id, signed("GITHUB", body, event="release"))
    assert repeated.json == {"executionId": again.json["executionId"], "repeatedFg": True}


def test_what_is_not_meant_is_left(office: Office, task: dict[str, Any]) -> None:
    body = json.dumps(PUSH).encode()
    picky = add(office, task, scheme="GITHUB", events=["push"], branches=["release/*", "next"])
    ignored = send(office, picky, signed("GITHUB", body, event="star"))
    assert (ignored.status, ignored.json["executionId"]) == (200, None)
    assert "main" in str(send(office, picky, signed("GITHUB", body)).json["reason"])
    release = PUSH | {"ref": "refs/heads/release/1.0"}
    assert send(office, picky, signed("GITHUB", json.dumps(release).encode()), release).status == 202
    tag = PUSH | {"ref": "refs/tags/next"}
    assert send(office, picky, signed("GITHUB", json.dumps(tag).encode()), tag).status == 200
    everything = add(office, task, scheme="GITHUB")
    assert send(office, everything, signed("GITHUB", body, event="ping")).json["reason"] == "a ping"


def test_a_field_of_another_type_is_refused_by_name(office: Office, task: dict[str, Any]) -> None:
    webhook_id = add(office, task, parameterMapping=MAPPING)
    headers = signed("GENERIC", b"")
    for changes, name in (({"size": "2"}, "SIZE"), ({"size": 11}, "SIZE"), ({"forced": 1}, "FORCED")):
        refused = send(office, webhook_id, headers, PUSH | changes)
        assert refused.status == 400
        assert f"parameterMapping.{name}" in str(refused.json["detail"])
    # what is not there has its default
    assert send(office, webhook_id, headers, {"commits": []}).status == 202
    for body in (b"[]", b"{", b"\xff"):
        sent = {"Content-Type": "application/json", **headers}
        assert office.http("POST", f"/hooks/{webhook_id}", body, headers=sent).status == 400


def test_it_has_its_owners_rights_as_they_are_now(office: Office, task: dict[str, Any]) -> None:
    webhook_id = add(office, task)
    headers = signed("GENERIC", b"")
    assert send(office, webhook_id, headers).status == 202
    with office.store() as store:
        store.execute("UPDATE roles SET role = 'VIEWER' WHERE user_id = ?", (office.users["manager"],))
    assert send(office, webhook_id, headers).status == 403
    with office.store() as store:
        store.execute("UPDATE roles SET role = 'MANAGER' WHERE user_id = ?", (office.users["manager"],))
    path = f"/api/v1/webhooks/{webhook_id}"
    assert office.ask("PATCH", path, {"enabledFg": False}, by="manager").status == 200
    assert send(office, webhook_id, headers).status == 404
    assert office.ask("PATCH", path, {"enabledFg": True, "secret": "another secret of sixteen"}).status == 200
    assert send(office, webhook_id, headers).status == 401
    assert office.ask("GET", path).json["userId"] == office.users["admin"]
    assert office.ask("DELETE", path, by="manager").status == 204
    assert send(office, webhook_id, headers).status == 404
    assert send(office, "nonsense", headers).status == 404


def test_a_policy_refuses_here_too(office: Office, task: dict[str, Any]) -> None:
    path = f"/api/v1/tasks/{task['taskId']}"
    office.ask("PATCH", path, {"multipleExecutionPolicy": "REJECT", "maxConcurrency": None})
    webhook_id = add(office, task)
    started = send(office, webhook_id, signed("GENERIC", b""))
    assert started.status == 202
    assert send(office, webhook_id, signed("GENERIC", b"")).status == 409
    with office.store() as store:
        transition(store, str(started.json["executionId"]), ("PENDING", "RUNNING"), "ABORTED")
    office.ask("PATCH", path, {"enabledFg": False})
    assert send(office, webhook_id, signed("GENERIC", b"")).status == 409


def test_faults_of_a_webhook_are_named(office: Office, task: dict[str, Any]) -> None:
    good = {"taskId": task["taskId"], "name": "Faulty", "secret": SECRET}
    for field, changes in (
        ("secret", {"secret": "short"}), ("secret", {"scheme": "STANDARD"}), ("taskId", {"taskId": "x"}),
        ("scheme", {"scheme": "MAGIC"}), ("events[0]", {"events": [""]}), ("zap", {"zap": 1}),
        ("parameterMapping.NOPE", {"parameterMapping": {"NOPE": "a"}}),
        ("parameterMapping.SIZE", {"parameterMapping": {"SIZE": "a..b"}}),
    ):  # fmt: skip
        answer = office.ask("POST", "/api/v1/webhooks", good | changes)
        assert (answer.status, list(answer.json["fields"])) == (400, [field]), changes  # type: ignore[call-overload]
    assert office.ask("POST", "/api/v1/webhooks", good, by="executor").status == 403
    assert office.ask("POST", "/api/v1/webhooks", good, by="stranger").status == 404
    assert office.ask("GET", "/api/v1/webhooks", by="executor").json["items"] == []
    assert office.ask("GET", f"/api/v1/webhooks?projectId={PROJECT}", by="executor").status == 403


def test_notifiers_keep_what_is_secret_to_themselves(office: Office) -> None:
    from ctrl_exec.tasks.notification.notifiers import load_notifier
    from ctrl_exec.tasks.sealing import Sealer

    address = "https://hooks.example.net/services/T000/B000/verysecretpart"
    body = {"projectId": PROJECT, "name": "Chat", "kind": "SLACK", "secret": address}
    made = office.ask("POST", "/api/v1/notifiers", body, by="manager")
    assert (made.status, made.json["settings"], made.json["secretFg"]) == (201, {}, True)
    assert office.ask("POST", "/api/v1/notifiers", body, by="manager").status == 409
    path = made.headers["Location"]
    off = office.ask("PATCH", path, {"enabledFg": False, "name": "Chat 2"})
    assert (off.json["enabledFg"], off.json["secretFg"], off.json["name"]) == (False, True, "Chat 2")
    with office.store() as store:
        found = load_notifier(
            store, Sealer(str(office.home / "etc" / "secrets.key")), str(made.json["notifierId"])
        )
    assert found is not None
    assert found[1] == address
    task = office.create_task(
        taskNotifierMap={made.json["notifierId"]: {"events": ["ON_FAILURE"], "afterFailures": 3}}
    )
    assert office.ask("DELETE", path).status == 409
    assert office.ask("DELETE", f"/api/v1/tasks/{task['taskId']}").status == 204
    shown = office.ask("GET", path).body + office.ask("GET", f"/api/v1/notifiers?projectId={PROJECT}").body
    shown += office.ask("GET", f"/api/v1/audit?objectId={made.json['notifierId']}").body
    assert b"verysecretpart" not in shown + (office.home / "api.log").read_bytes()
    for changes in (
        {"kind": "EMAIL"},
        {"projectId": "elsewhere"},
        {"secret": "no address"},
        {"settings": {"url": "x"}},
    ):
        assert office.ask("PATCH", path, changes).status == 400, changes
    for kind, more, field in (
        ("EMAIL", {}, "settings.to"), ("EMAIL", {"settings": {"to": ["nobody"]}}, "settings.to[0]"),
        ("EMAIL", {"settings": {"to": ["a@b.example"]}, "secret": "x"}, "secret"), ("SLACK", {}, "secret"),
        ("NTFY", {"settings": {"url": "ftp://x"}}, "settings.url"), ("WEBHOOK", {"settings": {"zap": 1, "url": "http://x"}}, "settings.zap"),
    ):  # fmt: skip
        body = {"projectId": PROJECT, "name": "Faulty", "kind": kind, **more}
        answer = office.ask("POST", "/api/v1/notifiers", body)
        assert (answer.status, list(answer.json["fields"])) == (400, [field]), (kind, more)  # type: ignore[call-overload]
    assert office.ask("GET", "/api/v1/notifiers", by="nobody").json["items"] == []
    assert office.ask("DELETE", path).status == 204
    assert office.ask("GET", path).status == 404
