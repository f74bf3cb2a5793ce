"""The pairing port on the wire: both protocols, what is refused, and whom a place belongs to."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import socket
import ssl
import time
from typing import TYPE_CHECKING

import pytest

from ctrl_exec.common.certificate import parse_certificate
from ctrl_exec.common.errors import ConflictError, PairingError, UnknownPairingError
from ctrl_exec.operations.pairing import Approval
from tests.support.pairing import Instance, ListenerProcess, RawAgent, RawClient, listening, queue_one
from tests.support.polling import eventually
from tests.support.processes import children_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def instance(tmp_path: Path) -> Instance:
    return Instance(tmp_path / "d", "pairing_max_queue = 3\n")


@pytest.fixture
def listener(instance: Instance) -> Iterator[ListenerProcess]:
    with listening(instance) as process:
        yield process


def wait_for_request(instance: Instance, count: int = 1) -> tuple[str, ...]:
    """The ids in the queue once there are that many."""
    signer = instance.signer()
    return eventually(
        lambda: (
            tuple(each.request.id for each in signer.requests()) if len(signer.requests()) == count else ()
        )
    )


# The two protocols


def test_protocol_2_from_request_to_certificate(instance: Instance, listener: ListenerProcess) -> None:
    """Pending with CA and random, reveal, the same code on both sides, then a certificate for our key."""
    agent = RawAgent()
    client, pending = queue_one(listener.port, agent, ip="192.0.2.7", port=7001, lookup_by="ip")
    with client:
        assert set(pending) == {"status", "reqid", "protocol", "ca", "r_d"}
        assert pending["protocol"] == 2
        wait_for_request(instance)
        signer = instance.signer()
        (shown,) = signer.requests()
        assert shown.request.id == pending["reqid"]
        assert shown.code == agent.code(instance.ca_der, client.server_der, pending["r_d"])
        record = signer.approve("web-01", Approval(code=shown.code, tags=(("env", "prod"),)))
        final = client.document()
    assert set(final) == {"status", "cert", "ca", "nonce", "dispatcher_serial", "dispatcher_id"}
    assert final["status"] == "approved"
    assert final["ca"] == pending["ca"]
    assert final["dispatcher_id"] == "main"
    assert final["dispatcher_serial"] == parse_certificate(client.server_der).serial
    leaf = parse_certificate(ssl.PEM_cert_to_DER_cert(final["cert"]))
    assert leaf.fingerprint == hashlib.sha256(agent.spki).hexdigest()
    assert leaf.common_name == "web-01"
    assert record == instance.signer().registry.get("web-01")
    assert (record.ip, record.port, record.lookup_by) == ("192.0.2.7", 7001, "ip")
    assert (record.serial, record.fingerprint) == (leaf.serial, leaf.fingerprint)
    assert record.dispatcher_serial == final["dispatcher_serial"]
    assert (record.reqid, record.serial_status) == (pending["reqid"], "current")
    assert record.tags == (("env", "prod"),)
    assert record.paired.endswith("Z")
    assert record.expiry.endswith("GMT")


def test_the_nonce_comes_back(instance: Instance, listener: ListenerProcess) -> None:
    """The approval carries the request's own nonce."""
    agent = RawAgent()
    request = agent.request()
    with RawClient(listener.port) as client:
        client.post(request)
        client.document()
        client.reveal(agent.reveal)
        wait_for_request(instance)
        instance.signer().approve("web-01", Approval())
        assert client.document()["nonce"] == request["nonce"]


def test_an_older_agent_pairs_with_approve_legacy_only(instance: Instance, listener: ListenerProcess) -> None:
    """HTTP/1.0 as LWP writes it, pending without protocol 2, the older code, marked and held back."""
    agent = RawAgent(bits=4096)
    request = agent.legacy_request()
    head = (
        "TE: deflate,gzip;q=0.3\r\nConnection: TE, close\r\nHost: dispatcher:7444\r\n"
        "User-Agent: libwww-perl/6.68\r\nContent-Type: application/json\r\n"
    )
    with RawClient(listener.port) as client:
        client.post(request, head=head)
        pending = client.document()
        assert set(pending) == {"status", "reqid"}
        wait_for_request(instance)
        signer = instance.signer()
        (shown,) = signer.requests()
        assert shown.as_json()["legacy"] is True
        first = hashlib.sha256(agent.csr.encode()).digest()[:4]
        assert shown.code == f"{int.from_bytes(first, 'big') % 10**6:06d}"
        with pytest.raises(PairingError, match="--legacy"):
            signer.approve("web-01", Approval())
        signer.approve("web-01", Approval(is_legacy=True))
        final = client.document()
    assert final["status"] == "approved"
    assert final["nonce"] == request["nonce"]


def test_every_answer_is_a_whole_http_1_0_response(instance: Instance, listener: ListenerProcess) -> None:
    """Status line, JSON type and exact length, twice on one connection."""
    agent = RawAgent()
    with RawClient(listener.port) as client:
        client.post(agent.legacy_request())
        answers = [client.answer()]
        wait_for_request(instance)
        instance.signer().deny("web-01", "not today")
        answers.append(client.answer())
        assert client.is_closed(60)
    for status, headers, _ in answers:
        assert status == "HTTP/1.0 200 OK"
        assert headers["content-type"] == "application/json"
    assert answers[1][2] == {"status": "denied", "reason": "not today"}


def test_a_1_1_client_is_served_too(instance: Instance, listener: ListenerProcess) -> None:
    """A newer HTTP version in the request changes nothing in the answers."""
    with RawClient(listener.port) as client:
        client.post(RawAgent().legacy_request(), version="1.1", head="Host: d\r\n")
        assert client.document()["status"] == "pending"


# Commitment


def test_a_reveal_that_was_not_committed_to_is_refused(instance: Instance, listener: ListenerProcess) -> None:
    """The random can't be chosen after the dispatcher's was seen; nobody is ever shown that request."""
    agent = RawAgent()
    with RawClient(listener.port) as client:
        client.post(agent.request())
        client.document()
        client.reveal(os.urandom(32))
        answer = client.document()
    assert answer["status"] == "error"
    assert "committed" in answer["reason"]
    assert instance.signer().requests() == ()


@pytest.mark.parametrize(
    "line",
    [b"\n", b"junk\n", b"{}\n", b'{"reveal": 7}\n', b'{"reveal": "ab"}\n', b"[" * 900 + b"\n", b"x" * 2000],
)
def test_garbage_instead_of_a_reveal_is_an_invalid_request(listener: ListenerProcess, line: bytes) -> None:
    """Anything but one short JSON line with 64 hex digits ends the exchange."""
    with RawClient(listener.port) as client:
        client.post(RawAgent().request())
        client.document()
        client.send(line)
        assert client.document() == {"status": "error", "reason": "invalid request"}


def test_no_code_is_shown_before_the_reveal(instance: Instance, listener: ListenerProcess) -> None:
    """A request that is not revealed is never in the list."""
    with RawClient(listener.port) as client:
        client.post(RawAgent().request())
        client.document()
        assert instance.signer().requests() == ()


@pytest.mark.long
def test_silence_instead_of_the_reveal_is_dropped(instance: Instance, listener: ListenerProcess) -> None:
    """After 10 s its connection is ended, and its place is free."""
    with RawClient(listener.port) as client:
        client.post(RawAgent().request())
        client.document()
        started = time.monotonic()
        assert client.document() == {"status": "error", "reason": "no reveal in time"}
        assert time.monotonic() - started > 8
        assert instance.signer().requests() == ()
    assert os.listdir(instance.home / "state/pairing/incoming") == []


# What is refused


@pytest.mark.parametrize(
    "name",
    ["", "../../etc/passwd", "a/b", "..", ".x", "-rf", "a\0b", "a b", "ä", "x" * 254, 7, None, ["a"]],
)
def test_a_name_that_is_none_is_an_invalid_hostname(listener: ListenerProcess, name: object) -> None:
    """Traversal and all other odd names are refused before anything is stored."""
    with RawClient(listener.port) as client:
        client.post(RawAgent().request(hostname=name))
        answer = client.document()
    assert (answer["status"], answer["reason"]) == ("error", "invalid hostname")


def test_names_are_folded_to_lower_case(instance: Instance, listener: ListenerProcess) -> None:
    """`WEB-01` is `web-01` everywhere."""
    client, _ = queue_one(listener.port, RawAgent("WEB-01"))
    with client:
        wait_for_request(instance)
        assert instance.signer().requests()[0].request.hostname == "web-01"


@pytest.mark.parametrize(
    "changes",
    [
        {"nonce": "short"},
        {"nonce": "../../../../../../etc/passwd0000"},
        {"nonce": None},
        {"csr": "junk"},
        {"csr": None},
        {"csr": "-----BEGIN CERTIFICATE REQUEST-----\nMIIB\n-----END CERTIFICATE REQUEST-----\n"},
        {"commit": "zz"},
        {"commit": None},
        {"protocol": "2"},
        {"port": 0},
        {"port": 65536},
        {"port": "x"},
        {"port": "99999"},
        {"ip": "not an address"},
        {"lookup_by": "dns"},
        {"token": "ctpair_junk"},
        {"token": "ctpair_" + "ab" * 32 + "." + "S" * 43},
    ],
)
def test_a_bad_field_is_an_invalid_request(listener: ListenerProcess, changes: dict[str, object]) -> None:
    """The reason is the protocol's word; a detail for people says more."""
    with RawClient(listener.port) as client:
        client.post(RawAgent().request(**changes))
        answer = client.document()
    assert (answer["status"], answer["reason"]) == ("error", "invalid request")
    assert answer["detail"]


@pytest.mark.parametrize(
    "body", [b"", b"junk", b"[]", b'"x"', b"{", b"\xff\xfe", b'{"a":1,"a":2}', b"[" * 5000]
)
def test_a_body_that_is_no_object_is_an_invalid_request(listener: ListenerProcess, body: bytes) -> None:
    """Garbage gets an answer, not a closed connection."""
    with RawClient(listener.port) as client:
        client.post(body)
        assert client.document()["reason"] in ("invalid request", "invalid hostname")


def test_too_large_a_request_is_refused_by_its_length(listener: ListenerProcess) -> None:
    """More than 64 KiB is refused before it is read."""
    with RawClient(listener.port) as client:
        client.send(b"POST /pair HTTP/1.0\r\nContent-Length: 65537\r\n\r\n")
        answer = client.document("1.1")
    assert (answer["status"], answer["reason"]) == ("error", "request too large")


def test_a_large_csr_within_the_limit_of_a_request_is_refused(listener: ListenerProcess) -> None:
    """A CSR has its own limit of 10 KiB."""
    agent = RawAgent()
    with RawClient(listener.port) as client:
        client.post(agent.request(csr=agent.csr + "\n" * 11_000))
        assert "larger than" in client.document()["detail"]


def test_other_paths_and_methods_are_no_pairing(listener: ListenerProcess) -> None:
    """404 and 405, in JSON; bytes that are no HTTP get a 400."""
    for line, expected in (
        ("GET /", "404"), ("POST /pairing", "404"), ("GET /pair", "405"), ("nonsense", "400"),
    ):  # fmt: skip
        with RawClient(listener.port) as client:
            client.send(f"{line} HTTP/1.0\r\n\r\n".encode())
            status, _, document = client.answer()
            assert expected in status
            assert document["status"] == "error"


def test_plain_bytes_silence_and_resets_do_no_harm(instance: Instance, listener: ListenerProcess) -> None:
    """A bare connect, plain HTTP, half a handshake and noise leave the port as it was."""
    idle = [socket.create_connection(("127.0.0.1", listener.port)) for _ in range(40)]
    for payload in (b"", b"GET / HTTP/1.0\r\n\r\n", b"\x16\x03\x01\x02\x00", os.urandom(500)):
        with socket.create_connection(("127.0.0.1", listener.port)) as plain:
            plain.sendall(payload)
    client, _ = queue_one(listener.port, RawAgent())
    with client:
        wait_for_request(instance)
        instance.signer().approve("web-01", Approval())
        assert client.document()["status"] == "approved"
    for each in idle:
        each.close()
    assert listener.process.poll() is None


def test_hundreds_of_silent_slow_and_half_open_clients_keep_nobody_out(
    instance: Instance, listener: ListenerProcess
) -> None:
    """200 silent connections, 60 half-open handshakes and 40 slow heads, and an agent pairs as ever."""
    address = ("127.0.0.1", listener.port)
    held: list[socket.socket | RawClient] = [socket.create_connection(address) for _ in range(200)]
    for _ in range(60):
        half = socket.create_connection(address)
        half.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
        held.append(half)
    for _ in range(40):
        with contextlib.suppress(OSError):
            slow = RawClient(listener.port)
            slow.send(b"POST /pair HTTP/1.0\r\nContent-Le")
            held.append(slow)

    def paired() -> bool:
        client, _ = queue_one(listener.port, RawAgent())
        with client:
            wait_for_request(instance)
            instance.signer().approve("web-01", Approval(is_replacing=True))
            return bool(client.document()["status"] == "approved")

    assert eventually(paired)
    for each in held:
        each.close()


def test_a_nonce_may_come_again_with_its_own_csr_only(instance: Instance, listener: ListenerProcess) -> None:
    """Replayed with another CSR it is an invalid request; after a broken connection it is fine."""
    first, second = RawAgent(), RawAgent()
    request = first.request()
    with RawClient(listener.port) as client:
        client.post(request)
        assert client.document()["status"] == "pending"
    with RawClient(listener.port) as client:
        client.post(second.request(nonce=request["nonce"]))
        answer = client.document()
        assert (answer["status"], answer["reason"]) == ("error", "invalid request")
        assert "nonce" in answer["detail"]
    with RawClient(listener.port) as client:
        client.post(request)
        assert client.document()["status"] == "pending"


def test_a_revoked_key_is_refused_at_once(instance: Instance, listener: ListenerProcess) -> None:
    """It gets no place in the queue, under whatever name it comes."""
    agent = RawAgent()
    client, _ = queue_one(listener.port, agent)
    with client:
        wait_for_request(instance)
        signer = instance.signer()
        record = signer.approve("web-01", Approval())
        client.document()
    signer.registry.revoke(record, "stolen")
    agent.name = "other"
    with RawClient(listener.port) as client:
        client.post(agent.request())
        answer = client.document()
    assert answer["status"] == "denied"
    assert "revoked" in answer["reason"]


@pytest.mark.parametrize("broken", ["requests", "incoming", "nonces", "revoked.json"])
def test_a_dispatcher_out_of_order_says_so_and_no_more(
    instance: Instance, listener: ListenerProcess, broken: str
) -> None:
    """State that can't be written or read is an answer for the agent and a line in our log."""
    if broken == "revoked.json":
        (instance.home / "state/revoked.json").write_text("{ half")
    else:
        (instance.home / "state/pairing" / broken).rmdir()
        (instance.home / "state/pairing" / broken).write_text("in the way")
    agent = RawAgent()
    with RawClient(listener.port) as client:
        client.post(agent.request())
        answer = client.document()
        if answer["status"] == "pending":
            client.reveal(agent.reveal)
            answer = client.document()
    assert answer == {"status": "error", "reason": "the dispatcher cannot queue requests now"}
    assert "ACTION=pair-reject" in listener.log()
    assert broken in listener.log()
    assert "Traceback" not in listener.log()


# The queue


def test_a_full_queue_says_so_and_hanging_up_frees_a_place(
    instance: Instance, listener: ListenerProcess
) -> None:
    """Three wait, the fourth is refused; once one goes away there is room again."""
    clients = [queue_one(listener.port, RawAgent(f"web-{number}"))[0] for number in range(3)]
    wait_for_request(instance, 3)
    with RawClient(listener.port) as client:
        client.post(RawAgent("late").request())
        assert client.document() == {"status": "error", "reason": "pairing queue full"}
    clients[1].close()
    wait_for_request(instance, 2)
    client, _ = queue_one(listener.port, RawAgent("late"))
    names = {each.request.hostname for each in instance.signer().requests()}
    eventually(lambda: len(instance.signer().requests()) == 3)
    assert "web-1" not in names
    for each in (client, clients[0], clients[2]):
        each.close()


def test_a_reserved_place_counts_before_the_reveal(listener: ListenerProcess) -> None:
    """Requests that have not revealed yet can't overfill the queue."""
    clients = []
    for number in range(3):
        client = RawClient(listener.port)
        client.post(RawAgent(f"a{number}").request())
        assert client.document()["status"] == "pending"
        clients.append(client)
    with RawClient(listener.port) as client:
        client.post(RawAgent("late").request())
        assert client.document()["reason"] == "pairing queue full"
    for each in clients:
        each.close()


def test_the_answer_waits_for_an_agent_that_went_away(instance: Instance, listener: ListenerProcess) -> None:
    """Decided after its connection was lost, it is given to the same name and key, and to nobody else."""
    agent = RawAgent()
    client, _ = queue_one(listener.port, agent)
    wait_for_request(instance)
    (child,) = children_of(listener.process.pid)
    os.kill(child, signal.SIGKILL)
    with client, pytest.raises((EOFError, OSError)):
        client.document()
    record = instance.signer().approve("web-01", Approval())
    again, _ = queue_one(listener.port, agent)
    with again:
        final = again.document()
    assert final["status"] == "approved"
    assert parse_certificate(ssl.PEM_cert_to_DER_cert(final["cert"])).serial == record.serial
    other, _ = queue_one(listener.port, RawAgent("web-01"))
    with other:
        assert len(wait_for_request(instance)) == 1


@pytest.mark.long
def test_an_undecided_request_ends_with_its_time(tmp_path: Path) -> None:
    """After pairing_timeout the agent is told, and its place is free."""
    instance = Instance(tmp_path / "d", "pairing_timeout = 10\n")
    with listening(instance) as listener:
        client, _ = queue_one(listener.port, RawAgent())
        with client:
            assert client.document() == {"status": "denied", "reason": "no decision in time"}
        assert os.listdir(instance.home / "state/pairing/requests") == []


def test_stopping_tells_those_who_wait(instance: Instance) -> None:
    """At the end of pairing mode every waiting agent gets an answer."""
    with listening(instance) as listener:
        client, _ = queue_one(listener.port, RawAgent())
        wait_for_request(instance)
    with client:
        assert client.document() == {"status": "denied", "reason": "pairing mode ended"}
    assert os.listdir(instance.home / "state/pairing/requests") == []


def test_the_listener_ends_with_its_signer(instance: Instance) -> None:
    """When the pipe from the signer closes, however it died, the port is closed too."""
    listener = ListenerProcess(instance)
    assert listener.process.stdin is not None
    listener.process.stdin.close()
    assert listener.process.wait(60) == 0
    assert listener.process.stdout is not None
    listener.process.stdout.close()


# Deciding


def test_a_taken_name_needs_replace(instance: Instance, listener: ListenerProcess) -> None:
    """The second agent of a name is refused until its approver says that it may have it."""
    first, second = RawAgent(), RawAgent()
    for agent, approval in ((first, Approval()), (second, Approval(is_replacing=True))):
        client, _ = queue_one(listener.port, agent)
        with client:
            wait_for_request(instance)
            signer = instance.signer()
            if approval.is_replacing:
                assert signer.requests()[0].is_registered
                with pytest.raises(ConflictError, match="--replace"):
                    signer.approve("web-01", Approval())
            signer.approve("web-01", approval)
            assert client.document()["status"] == "approved"
    found = instance.signer().registry.get("web-01")
    assert found.fingerprint == hashlib.sha256(second.spki).hexdigest()


def test_a_wrong_code_is_not_approved(instance: Instance, listener: ListenerProcess) -> None:
    """`--code` holds the approval back when the agent shows another one."""
    client, _ = queue_one(listener.port, RawAgent())
    with client:
        wait_for_request(instance)
        signer = instance.signer()
        (shown,) = signer.requests()
        wrong = "000000" if shown.code != "000000" else "000001"
        with pytest.raises(PairingError, match="code"):
            signer.approve("web-01", Approval(code=wrong))
        signer.approve("web-01", Approval(code=shown.code))
        assert client.document()["status"] == "approved"


def test_a_name_with_two_requests_must_be_chosen_by_id(instance: Instance, listener: ListenerProcess) -> None:
    """The error lists the ids; either can be decided by its own."""
    clients = [queue_one(listener.port, RawAgent())[0] for _ in range(2)]
    ids = wait_for_request(instance, 2)
    signer = instance.signer()
    with pytest.raises(ConflictError, match=ids[1]):
        signer.approve("web-01", Approval())
    signer.deny(ids[0])
    signer.approve(ids[1], Approval())
    statuses = sorted(client.document()["status"] for client in clients)
    assert statuses == ["approved", "denied"]
    with pytest.raises(UnknownPairingError):
        signer.deny(ids[0])
    for client in clients:
        client.close()


def test_of_approvers_at_once_one_signs(instance: Instance, listener: ListenerProcess) -> None:
    """Six processes approve the same request: one certificate, one record, one answer."""
    client, _ = queue_one(listener.port, RawAgent())
    with client:
        (request_id,) = wait_for_request(instance)
        reading, writing = os.pipe()
        pids = []
        for _ in range(6):
            pid = os.fork()
            if pid == 0:
                os.close(writing)
                os.read(reading, 1)
                try:
                    instance.signer().approve(request_id, Approval())
                except (ConflictError, UnknownPairingError):
                    os._exit(7)
                except BaseException:
                    os._exit(9)
                os._exit(0)
            pids.append(pid)
        os.close(reading)
        os.close(writing)
        codes = sorted(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids)
        assert codes == [0] + [7] * 5
        leaf = parse_certificate(ssl.PEM_cert_to_DER_cert(client.document()["cert"]))
    assert instance.signer().registry.get("web-01").serial == leaf.serial


def test_different_requests_are_approved_at_once(instance: Instance, listener: ListenerProcess) -> None:
    """Three approvers, three requests: three serials, all different."""
    clients = [queue_one(listener.port, RawAgent(f"web-{number}"))[0] for number in range(3)]
    ids = wait_for_request(instance, 3)
    pids = []
    for request_id in ids:
        pid = os.fork()
        if pid == 0:
            instance.signer().approve(request_id, Approval())
            os._exit(0)
        pids.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0, 0, 0]
    serials = set()
    for client in clients:
        serials.add(parse_certificate(ssl.PEM_cert_to_DER_cert(client.document()["cert"])).serial)
        client.close()
    assert len(serials) == 3


def test_a_request_swapped_after_it_was_shown_is_refused(
    instance: Instance, listener: ListenerProcess
) -> None:
    """Whoever took the listener over can't have another key signed than the one that was compared."""
    client, _ = queue_one(listener.port, RawAgent())
    with client:
        (request_id,) = wait_for_request(instance)
        signer = instance.signer()
        path = instance.home / f"state/pairing/requests/{request_id}.json"
        document = json.loads(path.read_text())
        document["csr"] = RawAgent("evil").csr
        path.write_text(json.dumps(document))
        with pytest.raises(PairingError, match="changed after it was shown"):
            signer.approve(request_id, Approval())
        assert client.document()["status"] == "denied"
    assert signer.registry.find("web-01") is None


@pytest.mark.parametrize(
    "change",
    [
        {"hostname": "../../x"}, {"hostname": "UPPER"}, {"port": 0}, {"nonce": "x"}, {"agent_random": ""},
        {"csr": 7}, {"id": "0" * 16}, {"server_random": "zz"}, {"received": "now"}, {"proof": "x"},
    ],
)  # fmt: skip
def test_a_forged_queue_file_is_never_shown(
    instance: Instance, listener: ListenerProcess, change: dict[str, object]
) -> None:
    """The signer reads the queue as hostile: a field out of place and the request is not there."""
    client, _ = queue_one(listener.port, RawAgent())
    with client:
        (request_id,) = wait_for_request(instance)
        (instance.home / "state/signer/shown" / f"{request_id}.json").unlink()
        path = instance.home / f"state/pairing/requests/{request_id}.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
        assert instance.signer().requests() == ()


def test_links_in_the_queue_are_not_followed(instance: Instance, listener: ListenerProcess) -> None:
    """A link to a file only root may read shows nothing, and a linked folder stops everything."""
    secret = instance.home / "secret.json"
    client, _ = queue_one(listener.port, RawAgent())
    with client:
        (request_id,) = wait_for_request(instance)
        folder = instance.home / "state/pairing/requests"
        secret.write_text((folder / f"{request_id}.json").read_text())
        (folder / f"{request_id}.json").unlink()
        (instance.home / "state/signer/shown" / f"{request_id}.json").unlink()
        (folder / f"{request_id}.json").symlink_to(secret)
        assert instance.signer().requests() == ()
        (folder / f"{request_id}.json").unlink()
        os.mkfifo(folder / f"{request_id}.json")
        assert instance.signer().requests() == ()
