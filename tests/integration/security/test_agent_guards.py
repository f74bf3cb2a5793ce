"""The agent against what surrounds it: inherited descriptors, strange text, certificates put together."""

from __future__ import annotations

import os
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from tests.support import processes
from tests.support.agents import AgentHost
from tests.support.pki import TestCA
from tests.support.polling import eventually

REQID = "0123456789abcdef"
HALF_A_PAIR = "a\ud800b"


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> TestCA:
    """A CA that the agents here trust."""
    return TestCA(tmp_path_factory.mktemp("pki"))


@pytest.fixture
def host(tmp_path: Path, ca: TestCA) -> Iterator[AgentHost]:
    """An agent that is configured but not started."""
    made = AgentHost(tmp_path, ca)
    yield made
    made.__exit__()


def test_scripts_inherit_no_descriptor_the_agent_was_started_with(host: AgentHost, tmp_path: Path) -> None:
    """What a careless parent left open is not a script's to read."""
    host.script("descriptors", "for each in /proc/self/fd/*; do readlink $each; done; true")
    (tmp_path / "secret").write_text("secret")
    log_path = tmp_path / "agent.log"
    with (tmp_path / "secret").open() as leaked, log_path.open("ab") as log:
        process = subprocess.Popen(
            processes.command("ctrl-exec-agent", "serve", "--config", host.config),
            env=processes.environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            pass_fds=[leaked.fileno()],
        )  # fmt: skip
    try:
        started = eventually(
            lambda: next((line for line in log_path.read_text().split("\n") if "ACTION=start" in line), None),
            what="the agent listens",
        )
        assert started is not None
        host.port = int(started.partition(f"ADDRESS={host.ip}:")[2].split()[0])
        assert "secret" not in host.run("descriptors")["stdout"]
    finally:
        process.terminate()
        process.wait(60)


def test_text_that_is_no_unicode_breaks_no_log_line_and_no_run(host: AgentHost) -> None:
    """JSON can carry half of a surrogate pair; it is escaped in the log like anything else."""
    host.script("hello", "echo hello")
    with host.start():
        found = host.run("hello", reqid=REQID, username=HALF_A_PAIR)
        assert (found["exit"], found["stdout"]) == (0, "hello\n")
        assert host.result(REQID).json()["status"] == "done"
        assert host.ask("POST", "/ping", {"reqid": HALF_A_PAIR}).status == 200
        assert host.run(HALF_A_PAIR)["error"] == "script not permitted"
        assert "ACTION=crash" not in host.log()
        assert r'USER="a\xed\xa0\x80b"' in host.log()


def test_a_certificate_that_reads_in_two_ways_is_not_taken(
    host: AgentHost, ca: TestCA, tmp_path: Path
) -> None:
    """openssl takes the first certificate of a text by any of its names; what we keep is what we read."""
    other = ca.issue("other")
    forged = TestCA(tmp_path / "forged").issue("host-a", key=host.leaf.key)
    for first in ("X509 CERTIFICATE", "TRUSTED CERTIFICATE"):
        text = other.crt.read_text().replace("BEGIN CERTIFICATE", f"BEGIN {first}")
        text = text.replace("END CERTIFICATE", f"END {first}") + forged.crt.read_text()
        with host.start():
            answer = host.ask("POST", "/renew-complete", {"cert": text, "reqid": REQID}).json()
            assert answer["status"] == "error", first
        shutil.copy(host.leaf.crt, host.etc / "agent.crt")


def test_only_the_certificate_itself_is_kept_of_a_renewal(host: AgentHost, ca: TestCA) -> None:
    """Whatever stands around it in the text that came is not stored."""
    renewed = ca.issue("host-a", key=host.leaf.key)
    other = ca.issue("other").crt.read_text().replace("CERTIFICATE-", "X509 CERTIFICATE-")
    with host.start():
        answer = host.ask(
            "POST", "/renew-complete", {"cert": renewed.crt.read_text() + other, "reqid": REQID}
        )
        assert answer.json()["status"] == "ok"
        der = renewed.certificate.public_bytes(serialization.Encoding.DER)
        kept = host.etc / "agent.crt"
        assert eventually(lambda: kept.read_text() == ssl.DER_cert_to_PEM_cert(der), what="the promotion")
        host.ask("POST", "/ping", {"reqid": os.urandom(8).hex()})


def test_a_serial_is_added_only_with_the_certificate_that_bears_it(
    host: AgentHost, ca: TestCA, tmp_path: Path
) -> None:
    """A certificate of the CA before a forged one vouches for no serial but its own."""
    genuine = host.dispatcher.crt.read_text().replace("CERTIFICATE-", "X509 CERTIFICATE-")
    forged = TestCA(tmp_path / "forged").dispatcher("main")
    body = {"action": "add", "serial": forged.serial, "cert": genuine + forged.crt.read_text()}
    trusted = host.state / "ctrl-exec-dispatchers"
    with host.start():
        assert host.ask("POST", "/rotate-serial", body).json()["status"] == "error"
        assert forged.serial not in trusted.read_text()
        following = ca.dispatcher("main")
        body = {"action": "add", "serial": following.serial, "cert": following.crt.read_text()}
        assert host.ask("POST", "/rotate-serial", body).json()["status"] == "ok"
        assert following.serial in trusted.read_text()
