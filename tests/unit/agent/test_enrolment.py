"""The agent reads a dispatcher's answers as hostile: a refusal in words, never a traceback."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ctrl_exec.common.errors import PairingError, StorageError, UsageError
from ctrl_exec_agent.config import AgentConfig
from ctrl_exec_agent.enrolment import PairingWish, _Draft, _Exchange, check_wish
from ctrl_exec_agent.pairing_store import Enrolled, store
from tests.support.pki import TestCA

if TYPE_CHECKING:
    from pathlib import Path

JSON = st.one_of(
    st.none(), st.booleans(), st.integers(), st.text(max_size=60), st.lists(st.integers(), max_size=2)
)
PENDING = {"status": "pending", "protocol": 2, "reqid": "0" * 16, "ca": "", "r_d": "ab" * 32}
FINAL = {
    "status": "approved", "cert": "", "ca": "", "nonce": "n", "dispatcher_serial": "abc", "dispatcher_id": "main",
}  # fmt: skip
HEX_CA = "ab" * 32
TOKEN = f"ctpair_{HEX_CA}.{'S' * 43}"


class Silent:
    """A connection on which nothing is sent in this test."""

    def send_line(self, line: bytes) -> None:
        """Take the reveal."""


def exchange(key_path: str = "/nonexistent", *, is_legacy: bool = False) -> _Exchange:
    wish = PairingWish("dispatcher", is_legacy=is_legacy)
    return _Exchange(AgentConfig(), wish, _Draft("a", key_path, "csr", b"csr"), None, lambda _text: None)


@settings(max_examples=300, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(st.dictionaries(st.sampled_from(sorted(PENDING)), JSON), st.sampled_from(["", "PEM"]))
def test_any_offer_is_a_code_or_a_refusal(changes: dict[str, object], ca: str) -> None:
    """Whatever the first answer holds, there is a code of six digits or a PairingError."""
    pem = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n" if ca else ""
    try:
        code = exchange()._accept_offer(Silent(), PENDING | {"ca": pem} | changes, b"server", bytes(32))  # type: ignore[arg-type]
    except PairingError:
        return
    assert len(code) == 6


@settings(max_examples=300, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(st.dictionaries(st.sampled_from(sorted(FINAL)), JSON))
def test_any_approval_that_is_not_right_is_a_refusal(changes: dict[str, object]) -> None:
    """Whatever the last answer holds, a wrong one is a PairingError."""
    with pytest.raises(PairingError):
        exchange()._check_approved(FINAL | changes, "n")


def test_a_token_brings_the_fingerprint_and_options_must_agree() -> None:
    """The CA to check is the token's; contradictions and legacy are refused before anything happens."""
    assert check_wish(PairingWish("d", token=TOKEN)).ca_fingerprint == HEX_CA
    assert check_wish(PairingWish("d", ca_fingerprint="AB:" * 31 + "AB")).ca_fingerprint == HEX_CA
    assert check_wish(PairingWish("d")).ca_fingerprint == ""
    for wish in (
        PairingWish("d", token=TOKEN, ca_fingerprint="cd" * 32),
        PairingWish("d", token="junk"),
        PairingWish("d", ca_fingerprint="junk"),
        PairingWish("d", token=TOKEN, is_legacy=True),
        PairingWish("d", ca_fingerprint=HEX_CA, is_legacy=True),
        PairingWish("d", port=0),
    ):
        with pytest.raises(UsageError):
            check_wish(wish)


def paired(tmp_path: Path, ca: TestCA, serial: str, name: str, **changes: object) -> AgentConfig:
    """Store an approval below the directory, as request-pairing does."""
    conf = tmp_path / "agent.conf"
    conf.touch()
    config = AgentConfig(etc_dir=str(tmp_path / "etc"), state_dir=str(tmp_path / "state"), path=str(conf))
    leaf = ca.issue("web-01")
    enrolled = Enrolled(leaf.crt.read_text(), ca.path.read_text(), serial, name, **changes)  # type: ignore[arg-type]
    store(config, str(leaf.key_path), enrolled)
    return config


def test_a_second_dispatcher_of_the_same_ca_joins_and_one_of_another_replaces(tmp_path: Path) -> None:
    """The trust map keeps what can still be verified, and nothing else."""
    first, second = TestCA(tmp_path / "one"), TestCA(tmp_path / "two")
    trust = tmp_path / "state/ctrl-exec-dispatchers"
    paired(tmp_path, first, "abc", "main")
    paired(tmp_path, first, "def", "spare")
    assert trust.read_text() == "abc main\ndef spare\n"
    paired(tmp_path, second, "123a", "other")
    assert trust.read_text() == "123a other\n"
    assert (tmp_path / "etc/ca.crt").read_text() == second.path.read_text()


def test_a_key_that_vanished_is_said(tmp_path: Path) -> None:
    """Two requests at once of one agent get in each other's way: the loser says so."""
    ca = TestCA(tmp_path / "ca")
    config = AgentConfig(etc_dir=str(tmp_path / "etc"), state_dir=str(tmp_path / "state"))
    enrolled = Enrolled(ca.issue("a").crt.read_text(), ca.path.read_text(), "abc", "main")
    with pytest.raises(StorageError, match="another request-pairing"):
        store(config, str(tmp_path / "none"), enrolled)
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "\n# set by pairing with an older dispatcher\nallow_bare_serial = yes\n"),
        ("port = 1\n[tags]\na = b\n",
         "port = 1\n# set by pairing with an older dispatcher\nallow_bare_serial = yes\n\n[tags]\na = b\n"),
    ],
)  # fmt: skip
def test_legacy_pairing_sets_the_one_setting_it_needs(tmp_path: Path, before: str, after: str) -> None:
    """`allow_bare_serial` goes before the first section; mode and the rest of the file stay."""
    conf = tmp_path / "agent.conf"
    conf.write_text(before)
    conf.chmod(0o604)
    paired(tmp_path, TestCA(tmp_path / "ca"), "4", "old", is_legacy=True)
    assert conf.read_text() == after
    assert conf.stat().st_mode & 0o777 == 0o604
