"""The pairing queue: places, claims that succeed once, answers that wait, hostile files."""

from __future__ import annotations

import json
import os
import stat
import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctrl_exec.ca.requests import (
    PairingAnswer,
    PairingQueue,
    PairingRequest,
    QueuedDecision,
    decode_request,
)
from ctrl_exec.common.errors import InvalidInputError, PairingError, StorageError
from ctrl_exec.common.names import new_reqid
from ctrl_exec.common.value import as_dict, replace

if TYPE_CHECKING:
    from pathlib import Path

KEY = "ab" * 32


def make_queue(tmp_path: Path, most: int = 3, stale_s: float = 600) -> PairingQueue:
    queue = PairingQueue(str(tmp_path / "pairing"), most=most, stale_s=stale_s)
    queue.prepare()
    return queue


def make_request(hostname: str = "web-01", **changes: object) -> PairingRequest:
    return replace(
        PairingRequest(
            id=new_reqid(),
            hostname=hostname,
            csr="-----BEGIN CERTIFICATE REQUEST-----",
            nonce="0" * 32,
            remote_ip="192.0.2.1",
            ip="192.0.2.1",
            port=7443,
            lookup_by="hostname",
            protocol=2,
            received=int(time.time()),
            agent_random="aa" * 32,
            server_random="bb" * 32,
        ),
        **changes,
    )


def put(queue: PairingQueue, request: PairingRequest) -> PairingRequest:
    queue.reserve(request.id)
    queue.publish(request)
    return request


def make_answer(request: PairingRequest, **changes: object) -> PairingAnswer:
    return replace(
        PairingAnswer(request.id, "denied", request.hostname, KEY, int(time.time()), reason="no"), **changes
    )


def test_a_request_goes_through_its_folders(tmp_path: Path) -> None:
    """Reserved, published, claimed, answered: at each step it is in one folder only."""
    queue = make_queue(tmp_path)
    request = make_request()
    queue.reserve(request.id)
    assert queue.waiting() == []
    queue.publish(request)
    assert queue.waiting() == [request]
    assert queue.find(request.id) == request
    assert queue.claim(request.id) == request
    assert queue.waiting() == []
    assert queue.find_answer(request.id) is None
    queue.answer(make_answer(request))
    answer = queue.find_answer(request.id)
    assert answer is not None
    assert answer.reason == "no"
    for folder in ("incoming", "requests", "claimed"):
        assert os.listdir(tmp_path / "pairing" / folder) == []
    queue.drop_answer(request.id)
    assert queue.find_answer(request.id) is None


def test_modes_are_those_of_the_contract(tmp_path: Path) -> None:
    """Folders 2770, files 0660."""
    queue = make_queue(tmp_path)
    request = put(queue, make_request())
    for folder in ("incoming", "requests", "claimed", "answers", "decisions", "nonces"):
        assert stat.S_IMODE((tmp_path / "pairing" / folder).stat().st_mode) == 0o2770
    path = tmp_path / f"pairing/requests/{request.id}.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o660


def test_a_claim_succeeds_once_and_can_be_given_back(tmp_path: Path) -> None:
    """Of several signers one gets the request; released, it waits again."""
    queue = make_queue(tmp_path)
    request = put(queue, make_request())
    reading, writing = os.pipe()
    pids = []
    for _ in range(8):
        pid = os.fork()
        if pid == 0:
            os.close(writing)
            os.read(reading, 1)
            os._exit(0 if queue.claim(request.id) else 7)
        pids.append(pid)
    os.close(reading)
    os.close(writing)
    assert sorted(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids) == [0] + [7] * 7
    assert queue.withdraw(request.id) is False
    queue.release(request.id)
    assert queue.waiting() == [request]
    assert queue.withdraw(request.id) is True
    assert queue.claim(request.id) is None


def test_places_are_counted_by_one_lock(tmp_path: Path) -> None:
    """However many ask at once, no more than the limit get a place; a withdrawn one is free again."""
    queue = make_queue(tmp_path, most=3)
    reading, writing = os.pipe()
    pids = []
    for _ in range(10):
        pid = os.fork()
        if pid == 0:
            os.close(writing)
            os.read(reading, 1)
            try:
                queue.reserve(new_reqid())
            except PairingError:
                os._exit(7)
            os._exit(0)
        pids.append(pid)
    os.close(reading)
    os.close(writing)
    codes = sorted(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids)
    assert codes == [0] * 3 + [7] * 7
    (taken, *_) = os.listdir(tmp_path / "pairing/incoming")
    assert queue.withdraw(taken.removesuffix(".json"))
    queue.reserve(new_reqid())
    with pytest.raises(PairingError, match="pairing queue full"):
        queue.reserve(new_reqid())


def test_what_nobody_waits_for_is_purged_in_its_time(tmp_path: Path) -> None:
    """Places 15 s, requests stale_s, answers 10 min, nonces an hour; a claim of 2 min is given back."""
    queue = make_queue(tmp_path, most=9)
    queue.reserve(new_reqid())
    waiting = put(queue, make_request("waits"))
    claimed = put(queue, make_request("claimed"))
    queue.claim(claimed.id)
    answered = put(queue, make_request("answered"))
    queue.claim(answered.id)
    queue.answer(make_answer(answered))
    queue.check_nonce("1" * 32, "digest")

    def counts() -> dict[str, int]:
        folders = ("incoming", "requests", "claimed", "answers", "nonces")
        return {folder: len(os.listdir(tmp_path / "pairing" / folder)) for folder in folders}

    now = time.time()
    queue.purge(now + 10)
    assert counts() == {"incoming": 1, "requests": 1, "claimed": 1, "answers": 1, "nonces": 1}
    queue.purge(now + 20)
    assert counts()["incoming"] == 0
    queue.purge(now + 130)
    assert counts() == {"incoming": 0, "requests": 2, "claimed": 0, "answers": 1, "nonces": 1}
    assert {each.hostname for each in queue.waiting()} == {"waits", "claimed"}
    queue.purge(now + 620)
    assert counts() == {"incoming": 0, "requests": 0, "claimed": 0, "answers": 0, "nonces": 1}
    queue.purge(now + 3610)
    assert counts()["nonces"] == 0
    assert waiting not in queue.waiting()


def test_a_stale_request_is_not_shown_even_before_it_is_purged(tmp_path: Path) -> None:
    """What waits longer than stale_s is no request any more."""
    queue = make_queue(tmp_path)
    put(queue, make_request(received=int(time.time()) - 601))
    assert queue.waiting() == []


def test_requests_come_oldest_first(tmp_path: Path) -> None:
    """Those who came first are shown first."""
    queue = make_queue(tmp_path)
    now = int(time.time())
    for name, before_s in (("b", 5), ("c", 1), ("a", 9)):
        put(queue, make_request(name, received=now - before_s))
    assert [each.hostname for each in queue.waiting()] == ["a", "b", "c"]


def test_a_nonce_belongs_to_the_csr_it_first_came_with(tmp_path: Path) -> None:
    """Another CSR is refused; the same one may come again."""
    queue = make_queue(tmp_path)
    queue.check_nonce("1" * 32, "digest-a")
    queue.check_nonce("1" * 32, "digest-a")
    queue.check_nonce("ab" * 16, "digest-a")
    for nonce in ("1" * 32, "AB" * 16):
        with pytest.raises(InvalidInputError, match="another CSR"):
            queue.check_nonce(nonce, "digest-b")
    for nonce in ("", "1" * 31, "../../x", "G" * 32):
        with pytest.raises(InvalidInputError, match="32 hex"):
            queue.check_nonce(nonce, "digest-a")


def test_an_answer_is_found_by_name_and_key_for_ten_minutes(tmp_path: Path) -> None:
    """The latest one, and no one else's."""
    queue = make_queue(tmp_path)
    now = int(time.time())
    old, new = put(queue, make_request()), put(queue, make_request())
    queue.answer(make_answer(old, at=now - 300))
    queue.answer(make_answer(new, at=now - 10, status="approved"))
    found = queue.find_answer_for_key("web-01", KEY)
    assert found is not None
    assert found.id == new.id
    assert queue.find_answer_for_key("web-02", KEY) is None
    assert queue.find_answer_for_key("web-01", "cd" * 32) is None
    queue.answer(make_answer(new, at=now - 601))
    queue.drop_answer(old.id)
    assert queue.find_answer_for_key("web-01", KEY) is None


def test_queued_decisions_are_given_once(tmp_path: Path) -> None:
    """Damaged and misnamed ones are dropped."""
    queue = make_queue(tmp_path)
    decision = QueuedDecision(new_reqid(), "approve", "digest", code="123456")
    queue.queue_decision(decision)
    (tmp_path / f"pairing/decisions/{new_reqid()}.json").write_text("junk")
    (tmp_path / f"pairing/decisions/{new_reqid()}.json").write_text(json.dumps(as_dict(decision)))
    assert queue.take_decisions() == [decision]
    assert queue.take_decisions() == []


def test_the_heartbeat_tells_when_a_signer_was_there(tmp_path: Path) -> None:
    """Never, then a moment; junk counts as never."""
    queue = make_queue(tmp_path)
    assert queue.last_beat() == 0
    queue.beat(1234)
    assert queue.last_beat() == 1234
    for junk in ("junk", "[]", '{"at": "now"}'):
        (tmp_path / "pairing/heartbeat.json").write_text(junk)
        assert queue.last_beat() == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give files away")
def test_what_root_writes_belongs_to_the_service(tmp_path: Path) -> None:
    """Answers and the heartbeat are handed over as they are made."""
    make_queue(tmp_path)
    queue = PairingQueue(str(tmp_path / "pairing"), most=1, stale_s=600, owner=(65534, 65534))
    request = make_request()
    queue.answer(make_answer(request))
    queue.beat(1)
    for name in (f"answers/{request.id}.json", "heartbeat.json"):
        assert (tmp_path / "pairing" / name).stat().st_uid == 65534


def test_ids_that_are_paths_never_reach_the_file_system(tmp_path: Path) -> None:
    """Every method that takes an id refuses what is none."""
    queue = make_queue(tmp_path)
    for call in (queue.find, queue.claim, queue.find_answer, queue.drop_answer, queue.release):
        with pytest.raises(InvalidInputError):
            call("../requests/x")


def test_a_queue_that_is_not_there_is_empty_to_look_at_and_an_error_to_write(tmp_path: Path) -> None:
    """Before pairing mode ever ran, lists are empty."""
    queue = PairingQueue(str(tmp_path / "none"), most=1, stale_s=1)
    assert queue.waiting() == []
    assert queue.claim(new_reqid()) is None
    assert queue.take_decisions() == []
    assert queue.last_beat() == 0
    with pytest.raises(StorageError):
        queue.publish(make_request())
    with pytest.raises(StorageError):
        queue.beat(1)


@settings(max_examples=300, deadline=None, database=None)
@given(
    st.dictionaries(
        st.sampled_from([*as_dict(make_request()), "other"]),
        st.one_of(
            st.none(), st.booleans(), st.integers(), st.text(max_size=80), st.lists(st.text(), max_size=2)
        ),
        max_size=4,
    )
)
def test_decoding_gives_a_checked_request_or_a_refusal(changes: dict[str, object]) -> None:
    """Whatever a hostile listener writes, the signer sees a request in order or an InvalidInputError."""
    content = json.dumps(as_dict(make_request()) | changes).encode()
    try:
        found = decode_request(content)
    except InvalidInputError:
        return
    assert found.hostname == found.hostname.lower()
    assert 1 <= found.port <= 65535
    assert len(found.nonce) == 32


@settings(max_examples=200, deadline=None, database=None)
@given(st.binary(max_size=200))
def test_decoding_bytes_of_any_kind_is_a_refusal(content: bytes) -> None:
    """No bytes lead to a traceback."""
    with pytest.raises(InvalidInputError):
        decode_request(content)
