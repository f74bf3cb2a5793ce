"""Which news an execution makes, and how they wait, are sent, tried again and given up."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from ctrl_exec.common.log import Log
from ctrl_exec.tasks.execution import carriage
from ctrl_exec.tasks.execution.executions import Start, claim, find_execution, request_execution
from ctrl_exec.tasks.execution.lifecycle import NS, Outcome
from ctrl_exec.tasks.models import LocalCommand, Retry, Task
from ctrl_exec.tasks.notification import news
from ctrl_exec.tasks.notification.mail import MailServer
from ctrl_exec.tasks.notification.news_sender import send_waiting
from ctrl_exec.tasks.notification.posting import Posting
from ctrl_exec.tasks.outbound.outgoing import read_allowance
from ctrl_exec.tasks.sealing import Sealer
from ctrl_exec.tasks.store import Store
from tests.support.mail_server import MailServerProcess, mail_server
from tests.support.receiver import Receiver, receiver
from tests.unit.tasks.conftest import NOW_NS, Clock
from tests.unit.tasks.test_executions import TASK, add_task

NOTIFIER = "01J8ZX2M5T0Q4W8E7R6Y5T4P3F"
LOCAL = Posting(read_allowance(["127.0.0.0/8"]))


def subscribed(
    store: Store, *events: str, after: int | None = None, url: str = "http://127.0.0.1:9/"
) -> None:
    """A task that tells a notifier of events."""
    add_task(store, "CONCURRENCY")
    add_notifier(store, url)
    subscription: dict[str, Any] = {"events": list(events)} | (
        {} if after is None else {"afterFailures": after}
    )
    sql = "UPDATE tasks SET definition = json_set(definition, '$.taskNotifierMap', json(?))"
    store.execute(sql, (json.dumps({NOTIFIER: subscription}),))


def add_notifier(store: Store, url: str, notifier_id: str = NOTIFIER) -> None:
    """A notifier that posts to a URL."""
    row = {
        "notifier_id": notifier_id, "project_id": "p", "name": notifier_id, "kind": "WEBHOOK",
        "settings": json.dumps({"url": url}), "created_ns": NOW_NS, "updated_ns": NOW_NS,
    }  # fmt: skip
    store.insert("notifiers", row)


def begun(store: Store) -> str:
    """An execution that runs."""
    execution_id = request_execution(store, Start(TASK)).execution_id
    assert claim(store, execution_id, "me")
    assert carriage.begin(store, execution_id, "me")
    return execution_id


def ended(store: Store, status: str, task: Task | None = None) -> str:
    """An execution that has ended so."""
    execution_id = begun(store)
    carriage.end(store, task, execution_id, Outcome(status, 0 if status == "SUCCESS" else 1))
    return execution_id


def told(store: Store) -> list[str]:
    """The events that wait, in their order; they are taken away."""
    found = [row["event"] for row in store.rows("SELECT event FROM notices ORDER BY rowid")]
    store.execute("DELETE FROM notices")
    return found


def test_a_start_and_an_end_are_told_with_their_facts(store: Store) -> None:
    subscribed(store, "ON_START", "ON_END")
    execution_id = ended(store, "FAILED")
    rows = store.rows("SELECT event, document FROM notices ORDER BY rowid")
    first, second = (json.loads(row["document"]) for row in rows)
    assert [row["event"] for row in rows] == ["ON_START", "ON_END"]
    assert (first["status"], first["endTs"], first["executionId"]) == ("RUNNING", None, execution_id)
    assert (second["status"], second["exitCode"], second["taskId"]) == ("FAILED", 1, TASK)
    assert "parameterMap" not in second


def test_every_failure_is_told_and_the_first_success_after_it(store: Store) -> None:
    subscribed(store, "ON_FAILURE", "ON_RECOVERY")
    ended(store, "SUCCESS")
    assert told(store) == []
    for status in ("FAILED", "TIMED_OUT", "LOST"):
        ended(store, status)
    assert told(store) == ["ON_FAILURE"] * 3
    ended(store, "SUCCESS")
    ended(store, "SUCCESS")
    assert told(store) == ["ON_RECOVERY"]


def test_after_failures_the_nth_in_a_row_is_told_once(store: Store) -> None:
    """And a recovery only of what was told."""
    subscribed(store, "ON_FAILURE", "ON_RECOVERY", after=3)
    ended(store, "FAILED")
    ended(store, "FAILED")
    ended(store, "SUCCESS")
    assert told(store) == []
    for _ in range(5):
        ended(store, "FAILED")
    assert [
        json.loads(row["document"])["failures"] for row in store.rows("SELECT document FROM notices")
    ] == [3]
    assert told(store) == ["ON_FAILURE"]
    ended(store, "SUCCESS")
    assert told(store) == ["ON_RECOVERY"]


def test_an_abort_is_no_failure_and_a_failure_that_is_tried_again_none_yet(store: Store) -> None:
    subscribed(store, "ON_FAILURE", "ON_RECOVERY", "ON_END")
    execution_id = begun(store)
    carriage.abort(store, execution_id)
    carriage.end(store, None, execution_id, Outcome("FAILED", 1))
    assert told(store) == ["ON_END"]
    store.execute("DELETE FROM executions")
    task = Task(TASK, "p", "t", LocalCommand(program="true"), retry=Retry(2))
    first = begun(store)
    again = carriage.end(store, task, first, Outcome("FAILED", 1))
    assert again is not None
    assert told(store) == ["ON_END"]
    assert claim(store, again.execution_id, "me")
    assert carriage.begin(store, again.execution_id, "me")
    assert carriage.end(store, task, again.execution_id, Outcome("SUCCESS", 0)) is None
    waiting = request_execution(store, Start(TASK)).execution_id
    carriage.abort(store, waiting)
    # the first attempt counts by what came of it, and what never ran has no end to tell of
    assert told(store) == ["ON_END"]
    ended(store, "ABORTED")
    ended(store, "SUCCESS")
    assert told(store) == ["ON_END"] * 2


def test_what_takes_far_longer_than_usual_is_told_once(store: Store, clock: Clock) -> None:
    subscribed(store, "ON_LONG")
    for _ in range(3):
        execution_id = begun(store)
        clock.now_ns += 40 * NS
        carriage.end(store, None, execution_id, Outcome("SUCCESS", 0))
    begun(store)
    clock.now_ns += 70 * NS
    assert news.note_long(store) == 0
    clock.now_ns += 15 * NS
    assert news.note_long(store) == 1
    assert news.note_long(store) == 0
    assert told(store) == ["ON_LONG"]


def test_a_notifier_that_is_gone_off_or_flooded_fails_no_execution(store: Store, monkeypatch: Any) -> None:
    subscribed(store, "ON_END")
    store.execute("UPDATE notifiers SET is_enabled = 0")
    assert find_execution(store, ended(store, "SUCCESS")).status == "SUCCESS"
    store.execute("DELETE FROM notifiers")
    assert find_execution(store, ended(store, "SUCCESS")).status == "SUCCESS"
    assert told(store) == []
    add_notifier(store, "http://127.0.0.1:9/")
    monkeypatch.setattr(news, "MOST_WAITING", 2)
    for _ in range(4):
        ended(store, "SUCCESS")
    assert told(store) == ["ON_END"] * 2


def send(
    store: Store, tmp_path: Path, notifier_id: str = NOTIFIER, posting: Posting = LOCAL
) -> tuple[int, str]:
    """How many were sent, and what was logged."""
    stream = io.StringIO()
    log = Log("test", "stderr", "text", stream=stream)
    count = send_waiting(store, Sealer(str(tmp_path / "key")), posting, notifier_id, log)
    return count, stream.getvalue()


@pytest.fixture
def desk() -> Any:
    with receiver() as opened:
        yield opened


def test_what_waits_is_sent_once_and_in_order(store: Store, desk: Receiver, tmp_path: Path) -> None:
    subscribed(store, "ON_START", "ON_END", url=f"{desk.url}/in?key=s3cr3t")
    ended(store, "SUCCESS")
    count, log = send(store, tmp_path)
    assert count == 2
    assert "s3cr3t" not in log
    assert [json.loads(each.body)["type"] for each in desk.requests] == ["execution.start", "execution.end"]
    assert send(store, tmp_path) == (0, "")


def test_what_fails_waits_longer_each_time_and_is_given_up(
    store: Store, clock: Clock, desk: Receiver, tmp_path: Path
) -> None:
    """All that waits for that receiver waits with it; the id stays the same, for receivers to know it by."""
    subscribed(store, "ON_START", "ON_END", url=f"{desk.url}/s3cr3t-path")
    desk.status = 503
    ended(store, "SUCCESS")
    for attempt in range(1, news.MOST_ATTEMPTS + 1):
        count, log = send(store, tmp_path)
        assert count == 0
        assert "the receiver answered 503" in log
        assert "s3cr3t-path" not in log
        assert len(desk.requests) == attempt
        assert news.due_notifiers(store) == ()
        assert send(store, tmp_path) == (0, "")
        due_ns = news.next_due_ns(store)
        assert due_ns is not None
        assert abs(due_ns - clock.now_ns - news.pause_s(attempt) * NS) < NS
        clock.now_ns = due_ns
    assert "given up" in log
    assert len({each.headers["webhook-id"] for each in desk.requests}) == 1
    desk.status = 204
    assert send(store, tmp_path)[0] == 1
    assert store.row("SELECT 1 FROM notices") is None


@pytest.fixture(scope="module")
def post_office(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with mail_server(tmp_path_factory.mktemp("mail")) as opened:
        yield opened


def test_mail_that_is_refused_now_is_tried_again_and_for_good_given_up(
    store: Store, clock: Clock, post_office: MailServerProcess, tmp_path: Path
) -> None:
    """4yz: it waits, and goes when it is taken. 5yz: it is dropped at once and said; the next one has its turn."""
    posting = Posting(
        LOCAL.allowance, MailServer("127.0.0.1", post_office.ports["none"], "none", "ctrl-exec@example.net")
    )

    def mail_to(address: str) -> None:
        store.execute("UPDATE notifiers SET kind = 'EMAIL', settings = ?", (json.dumps({"to": [address]}),))

    subscribed(store, "ON_END")
    for address, words in (("450@example.net", "none of the recipients"), ("data-451@example.net", "451")):
        mail_to(address)
        ended(store, "SUCCESS")
        count, log = send(store, tmp_path, posting=posting)
        assert (count, news.due_notifiers(store)) == (0, ())
        assert words in log
        assert "given up" not in log
        clock.now_ns += news.LONGEST_PAUSE_S * NS
    mail_to("ops@example.net")
    assert send(store, tmp_path, posting=posting)[0] == 2
    for address, words in (("550@example.net", "none of the recipients"), ("data-554@example.net", "554")):
        mail_to(address)
        for _ in range(2):
            ended(store, "SUCCESS")
        count, log = send(store, tmp_path, posting=posting)
        assert (count, store.row("SELECT 1 FROM notices")) == (0, None)
        assert log.count("given up") == 2
        assert words in log
        assert "@" not in log
    assert [each["recipients"] for each in post_office.mails()] == [["ops@example.net"]] * 2


def test_a_sender_that_died_has_lost_nothing(
    store: Store, clock: Clock, desk: Receiver, tmp_path: Path
) -> None:
    subscribed(store, "ON_END", url=desk.url + "/")
    ended(store, "SUCCESS")
    assert news.take_next(store, NOTIFIER) is not None
    assert send(store, tmp_path)[0] == 0
    clock.now_ns += news.FIRST_PAUSE_S * NS
    assert send(store, tmp_path)[0] == 1


def test_addresses_that_are_not_reached_are_not_reached(store: Store, tmp_path: Path) -> None:
    """And a notifier that was turned off meanwhile gets nothing more."""
    subscribed(store, "ON_END", url="http://[::1]:1/x")
    ended(store, "SUCCESS")
    assert "loopback" in send(store, tmp_path)[1]
    store.execute("UPDATE notifiers SET is_enabled = 0")
    assert send(store, tmp_path) == (0, "")
    assert store.row("SELECT 1 FROM notices") is None
