"""The signer without a network: what it shows, what it does by itself, what it leaves when it fails."""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING

import pytest

from ctrl_exec.ca.requests import PairingRequest, QueuedDecision
from ctrl_exec.ca.tokens import prove
from ctrl_exec.common.errors import ConflictError, InvalidInputError, PairingError, StorageError
from ctrl_exec.common.names import new_reqid
from ctrl_exec.common.pairing_code import split_token
from ctrl_exec.common.value import replace
from ctrl_exec.operations.agents import AgentChange, edit_agent, revoke, unpair
from ctrl_exec.operations.pairing import Approval, Signer, make_token
from ctrl_exec.services.registry import AgentRecord
from tests.support.pairing import Instance, RawAgent

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def instance(tmp_path: Path) -> Instance:
    made = Instance(tmp_path / "d")
    made.signer().queue.prepare()
    return made


def put(signer: Signer, agent: RawAgent, **changes: object) -> PairingRequest:
    """Queue a request as the listener would."""
    request = replace(
        PairingRequest(
            id=new_reqid(),
            hostname=agent.name,
            csr=agent.csr,
            nonce="0" * 32,
            remote_ip="192.0.2.1",
            ip="192.0.2.1",
            port=7443,
            lookup_by="hostname",
            protocol=2,
            received=int(time.time()),
            agent_random=agent.reveal.hex(),
            server_random="bb" * 32,
        ),
        **changes,
    )
    signer.queue.reserve(request.id)
    signer.queue.publish(request)
    return request


def with_api(instance: Instance) -> Signer:
    instance.conf.write_text(instance.conf.read_text() + "pairing_api_approve = yes\n")
    return instance.signer()


def test_a_queued_decision_counts_only_where_the_api_may_decide(instance: Instance) -> None:
    """By default what the service user leaves as a decision is not even looked at."""
    signer = instance.signer()
    request = put(signer, RawAgent())
    (shown,) = signer.requests()
    decision = QueuedDecision(request.id, "approve", shown.csr_digest, code=shown.code)
    signer.queue.queue_decision(decision)
    signer.turn()
    assert signer.registry.names() == ()
    allowed = with_api(instance)
    allowed.turn()
    assert allowed.registry.names() == ("web-01",)


@pytest.mark.parametrize("change", [{"code": ""}, {"code": "000000"}, {"csr_digest": "00" * 32}])
def test_a_queued_decision_must_fit_what_was_shown(instance: Instance, change: dict[str, str]) -> None:
    """Without the code, with another one, or for another CSR nothing is signed."""
    signer = with_api(instance)
    request = put(signer, RawAgent())
    (shown,) = signer.requests()
    if shown.code == "000000":
        change = {"code": "111111"}
    decision = QueuedDecision(request.id, "approve", shown.csr_digest, code=shown.code, by="alice")
    signer.queue.queue_decision(replace(decision, **change))
    signer.turn()
    assert signer.registry.names() == ()
    assert "ACTION=pair-reject" in instance.signer_log.getvalue()
    assert signer.queue.find(request.id) is not None


def test_a_queued_denial_and_one_for_a_gone_request(instance: Instance) -> None:
    """Denied with its reason; a decision about nothing is logged."""
    signer = with_api(instance)
    request = put(signer, RawAgent())
    signer.queue.queue_decision(QueuedDecision(request.id, "deny", "", by="alice", reason="not ours"))
    signer.queue.queue_decision(QueuedDecision(new_reqid(), "deny", ""))
    signer.turn()
    answer = signer.queue.find_answer(request.id)
    assert answer is not None
    assert (answer.status, answer.reason) == ("denied", "not ours")
    assert "BY=alice" in instance.signer_log.getvalue()


def test_a_queued_approval_never_replaces_a_name(instance: Instance) -> None:
    """A registered name stays with its agent whatever the API says."""
    signer = with_api(instance)
    put(signer, RawAgent())
    first = signer.approve("web-01", Approval())
    request = put(signer, RawAgent())
    (shown,) = signer.requests()
    signer.queue.queue_decision(QueuedDecision(request.id, "approve", shown.csr_digest, code=shown.code))
    signer.turn()
    assert signer.registry.get("web-01") == first


def test_the_token_is_used_up_before_anything_is_signed(instance: Instance) -> None:
    """When signing fails after that, the token is gone and no agent is registered."""
    signer = instance.signer()
    agent = RawAgent()
    secret = split_token(make_token(instance.config, "web-01", 60))[1]
    request = put(signer, agent, proof=prove(secret, agent.csr_der))
    key = instance.home / "etc/ca.key"
    key.rename(key.with_suffix(".away"))
    key.write_text("junk")
    signer.turn()
    key.with_suffix(".away").rename(key)
    assert signer.registry.names() == ()
    (name,) = os.listdir(instance.home / "state/signer/tokens")
    assert name.startswith("used-")
    signer.turn()
    answer = signer.queue.find_answer(request.id)
    assert answer is not None
    assert "not valid" in answer.reason
    assert signer.registry.names() == ()


def test_two_signers_and_one_token_make_one_agent(instance: Instance) -> None:
    """Two requests with the same token, two signers at once: one is approved, one denied."""
    signer = instance.signer()
    secret = split_token(make_token(instance.config, "web-01", 60))[1]
    requests = [put(signer, agent, proof=prove(secret, agent.csr_der)) for agent in (RawAgent(), RawAgent())]
    pids = []
    for _ in range(2):
        pid = os.fork()
        if pid == 0:
            instance.signer().turn()
            os._exit(0)
        pids.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0, 0]
    signer.turn()
    answers = [signer.queue.find_answer(each.id) for each in requests]
    assert sorted(each.status for each in answers if each) == ["approved", "denied"]


def test_a_proof_forged_by_the_listener_is_refused(instance: Instance) -> None:
    """Without the secret no proof can be made, though the file is the listener's to write."""
    signer = instance.signer()
    make_token(instance.config, "web-01", 60)
    request = put(signer, RawAgent(), proof="ab" * 32)
    signer.turn()
    answer = signer.queue.find_answer(request.id)
    assert answer is not None
    assert answer.status == "denied"


def test_a_failure_after_the_claim_gives_the_request_back(instance: Instance) -> None:
    """A registry that can't be written leaves the request waiting, for when it can."""
    signer = instance.signer()
    put(signer, RawAgent())
    agents = instance.home / "state/agents"
    agents.rmdir()
    agents.write_text("in the way")
    with pytest.raises(StorageError):
        signer.approve("web-01", Approval(is_replacing=True))
    agents.unlink()
    signer.approve("web-01", Approval())
    assert signer.registry.names() == ("web-01",)


@pytest.mark.parametrize(
    "approval",
    [Approval(ip="junk"), Approval(lookup_by="dns"), Approval(port=70000), Approval(tags=(("a b", "c"),))],
)
def test_a_record_that_could_not_be_kept_is_never_signed(instance: Instance, approval: Approval) -> None:
    """Bad fields of the approver are refused first; the request waits on."""
    signer = instance.signer()
    request = put(signer, RawAgent())
    with pytest.raises(InvalidInputError):
        signer.approve("web-01", approval)
    assert signer.queue.find(request.id) is not None
    assert signer.queue.find_answer(request.id) is None


def test_a_damaged_record_holds_its_name(instance: Instance) -> None:
    """A name whose record can't be read is not free."""
    signer = instance.signer()
    (instance.home / "state/agents/web-01.json").write_text("{ half")
    put(signer, RawAgent())
    with pytest.raises(ConflictError):
        signer.approve("web-01", Approval())


def test_a_revoked_key_is_not_signed_again(instance: Instance) -> None:
    """Not even with --replace: the listener refuses it, and so does the signer."""
    signer = instance.signer()
    agent = RawAgent()
    put(signer, agent)
    signer.registry.revoke(signer.approve("web-01", Approval()), "stolen")
    put(signer, agent)
    with pytest.raises(PairingError, match="revoked"):
        signer.approve("web-01", Approval(is_replacing=True))


def test_a_bad_csr_is_left_out_of_the_list(instance: Instance) -> None:
    """Only the listener checks before it queues; one that was taken over may not have."""
    signer = instance.signer()
    put(signer, RawAgent(), csr="junk")
    good = put(signer, RawAgent("web-02"))
    assert [each.request.id for each in signer.requests()] == [good.id]


def test_the_signer_says_that_it_lives_and_tidies_up(instance: Instance) -> None:
    """A heartbeat at each turn, copies of gone requests removed in time."""
    signer = instance.signer()
    request = put(signer, RawAgent())
    signer.requests()
    copy = instance.home / f"state/signer/shown/{request.id}.json"
    assert copy.exists()
    signer.queue.withdraw(request.id)
    os.utime(copy, (1, 1))
    assert signer.queue.last_beat() == 0
    signer.turn()
    assert time.time() - signer.queue.last_beat() < 60
    assert not copy.exists()


def test_the_copy_that_was_shown_first_stays(instance: Instance) -> None:
    """A second look shows the first copy, whatever lies in the queue by then."""
    signer = instance.signer()
    request = put(signer, RawAgent())
    (first,) = signer.requests()
    path = instance.home / f"state/pairing/requests/{request.id}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"csr": RawAgent("evil").csr}))
    (second,) = instance.signer().requests()
    assert second == first


# Agents


def record(name: str = "web-01") -> AgentRecord:
    return AgentRecord(hostname=name, ip="192.0.2.1", fingerprint="ab" * 32, serial="abc")


def test_unpairing_is_all_or_nothing(instance: Instance) -> None:
    """One unknown name, and none is removed; all unknown ones are listed."""
    signer = instance.signer()
    signer.registry.save(record())
    log = signer._log
    with pytest.raises(Exception, match="web-02, web-03"):
        unpair(signer.registry, log, ["web-01", "web-02", "web-03"], revoking=False)
    assert signer.registry.names() == ("web-01",)
    unpair(signer.registry, log, ["WEB-01"], revoking=True, reason="gone")
    assert signer.registry.names() == ()
    assert signer.registry.is_revoked("ab" * 32)
    assert "ACTION=unpair AGENT=web-01" in instance.signer_log.getvalue()


def test_a_key_nobody_knows_is_not_revoked_in_silence(instance: Instance) -> None:
    """An imported record without a key: the error says what to do, nothing is removed."""
    signer = instance.signer()
    signer.registry.save(replace(record(), fingerprint=""))
    for revoking in (lambda: revoke(signer.registry, signer._log, ["web-01"]),
                     lambda: unpair(signer.registry, signer._log, ["web-01"], revoking=True)):  # fmt: skip
        with pytest.raises(InvalidInputError, match="ping once"):
            revoking()
    assert signer.registry.names() == ("web-01",)


def test_edits_change_what_they_name(instance: Instance) -> None:
    """Tags are merged and taken away; nothing given is an error."""
    registry = instance.signer().registry
    registry.save(replace(record(), tags=(("a", "1"), ("b", "2"))))
    changed = edit_agent(registry, "web-01", AgentChange(tags=(("c", "3"),), removed_tags=("a",), port=1))
    assert (changed.tags, changed.port, changed.ip) == ((("b", "2"), ("c", "3")), 1, "192.0.2.1")
    with pytest.raises(InvalidInputError, match="nothing to change"):
        edit_agent(registry, "web-01", AgentChange())
    with pytest.raises(InvalidInputError, match="lookup_by ip needs an ip"):
        edit_agent(registry, "web-01", AgentChange(ip="", lookup_by="ip"))
