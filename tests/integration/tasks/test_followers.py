"""Who follows for long is asked about again: a token that is revoked, a role that is lost, end the stream."""

from __future__ import annotations

import contextlib
import http.client
from collections.abc import Iterator
from pathlib import Path

import pytest

from ctrl_exec.common.clock import epoch_now
from ctrl_exec.services.records import new_record
from ctrl_exec.services.results import ResultStore
from tests.support.office import PROJECT, Office

pytestmark = pytest.mark.long
REQID = "a1b2c3d4e5f60720"


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Office]:
    office = Office(tmp_path / "office", {"api_auth_default": "token"})
    try:
        office.start_api()
        yield office
    finally:
        office.close()


@contextlib.contextmanager
def following(office: Office, path: str, token: str) -> Iterator[http.client.HTTPResponse]:
    """A stream that has begun; its reads wait for two minutes at most."""
    connection = http.client.HTTPConnection("127.0.0.1", office.api_port, timeout=120)
    try:
        connection.request("GET", path, headers={"Authorization": f"Bearer {token}"})
        answer = connection.getresponse()
        assert answer.status == 200
        with answer:
            yield answer
    finally:
        connection.close()


def revoke(office: Office, token: str, by: str) -> None:
    with office.store() as store:
        row = store.row("SELECT token_id FROM tokens ORDER BY rowid DESC LIMIT 1")
    assert row is not None
    path = f"/api/v1/personal-access-tokens/{row['token_id']}"
    assert office.ask("DELETE", path, by=by).status == 204
    assert office.ask("GET", "/api/v1/profile", by=token).status == 401


def test_the_log_of_an_execution_ends_for_whom_it_is_no_more(guarded: Office) -> None:
    """Nobody carries it, so its log never ends by itself."""
    task = guarded.create_task()
    execution = guarded.ask("POST", "/api/v1/executions", {"taskId": task["taskId"]})
    path = f"{execution.headers['Location']}/log?follow=true"
    token = guarded.token_for("manager")
    with following(guarded, path, token) as stream:
        revoke(guarded, token, "manager")
        assert b"event: end" not in stream.read()
    with following(guarded, path, guarded.token_for("advanced_executor")) as stream:
        with guarded.store() as store:
            lost = (PROJECT, guarded.users["advanced_executor"])
            store.execute("UPDATE roles SET role = 'VIEWER' WHERE project_id = ? AND user_id = ?", lost)
        assert b"event: end" not in stream.read()


def test_the_output_of_a_run_ends_for_whom_it_is_no_more(guarded: Office) -> None:
    """This process carries it and says nothing."""
    record = new_record(REQID, "hello", ("host-a",), created=epoch_now(), submitter="manager")
    journal = ResultStore(str(guarded.state / "runs")).begin(record)
    token = guarded.token_for("manager")
    try:
        with following(guarded, f"/runs/{REQID}/output", token) as stream:
            revoke(guarded, token, "manager")
            lines = stream.read().splitlines()
        assert len(lines) == 1
        assert b'"start"' in lines[0]
    finally:
        journal.finish("completed")
