"""Pairing tokens: bound to a name and a time, stored as a hash, used once."""

from __future__ import annotations

import json
import os
import stat
from typing import TYPE_CHECKING

import pytest

from ctrl_exec.ca.tokens import KEPT_AFTER_S, TokenStore, prove
from ctrl_exec.common.clock import epoch_now
from ctrl_exec.common.errors import InvalidInputError, InvalidNameError
from ctrl_exec.common.pairing_code import split_token

if TYPE_CHECKING:
    from pathlib import Path

FINGERPRINT = "cd" * 32
CSR = b"a CSR in DER"


def make(tmp_path: Path, name: str = "web-01", ttl_s: int = 3600) -> tuple[TokenStore, str]:
    store = TokenStore(str(tmp_path / "tokens"))
    return store, split_token(store.make(name, ttl_s, FINGERPRINT))[1]


def test_a_token_carries_the_ca_and_a_long_random_secret(tmp_path: Path) -> None:
    """Its form is `ctpair_<fingerprint>.<secret>`; two are never alike."""
    store = TokenStore(str(tmp_path / "tokens"))
    tokens = {store.make("a", 60, FINGERPRINT) for _ in range(20)}
    assert len(tokens) == 20
    assert all(token.startswith(f"ctpair_{FINGERPRINT}.") and len(token) > 110 for token in tokens)


def test_only_a_hash_of_the_secret_is_stored_and_only_for_root(tmp_path: Path) -> None:
    """Neither the file's name nor its content holds the secret; modes are 0700 and 0600."""
    _, secret = make(tmp_path)
    (name,) = os.listdir(tmp_path / "tokens")
    content = (tmp_path / "tokens" / name).read_text()
    assert secret not in name + content
    assert set(json.loads(content)) == {"name", "expires"}
    assert stat.S_IMODE(os.stat(tmp_path / "tokens").st_mode) == 0o700
    assert stat.S_IMODE(os.stat(tmp_path / "tokens" / name).st_mode) == 0o600


def test_a_proof_finds_its_token_for_that_name_and_csr_only(tmp_path: Path) -> None:
    """Another name, CSR, secret or a later time finds nothing."""
    store, secret = make(tmp_path)
    now = epoch_now()
    proof = prove(secret, CSR)
    assert secret not in proof
    assert store.find("web-01", proof, CSR, now) is not None
    assert store.find("web-02", proof, CSR, now) is None
    assert store.find("web-01", proof, b"another CSR", now) is None
    assert store.find("web-01", prove("S" * 43, CSR), CSR, now) is None
    assert store.find("web-01", proof, CSR, now + 3601) is None


def test_a_token_is_used_once_even_by_several_signers_at_once(tmp_path: Path) -> None:
    """Of eight processes that consume the same token one succeeds; afterwards it is not found."""
    store, secret = make(tmp_path)
    token = store.find("web-01", prove(secret, CSR), CSR, epoch_now())
    assert token is not None
    reading, writing = os.pipe()
    pids = []
    for _ in range(8):
        pid = os.fork()
        if pid == 0:
            os.close(writing)
            os.read(reading, 1)
            os._exit(0 if store.consume(token) else 7)
        pids.append(pid)
    os.close(reading)
    os.close(writing)
    codes = sorted(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids)
    assert codes == [0] + [7] * 7
    assert store.find("web-01", prove(secret, CSR), CSR, epoch_now()) is None


def test_names_and_lifetimes_are_checked(tmp_path: Path) -> None:
    """A token is for an agent name and for at most 30 days."""
    store = TokenStore(str(tmp_path / "tokens"))
    with pytest.raises(InvalidNameError):
        store.make("../x", 60, FINGERPRINT)
    for ttl_s in (0, -1, 31 * 86400):
        with pytest.raises(InvalidInputError, match="30 days"):
            store.make("a", ttl_s, FINGERPRINT)
    assert not (tmp_path / "tokens").exists()


def test_old_and_used_tokens_are_purged_and_damaged_files_ignored(tmp_path: Path) -> None:
    """A week after its end a token's file goes, used or not; junk harms nothing."""
    store, secret = make(tmp_path, ttl_s=60)
    (tmp_path / "tokens" / ("ab" * 32 + ".json")).write_text("junk")
    (tmp_path / "tokens" / ("cd" * 32 + ".json")).write_text("[]")
    token = store.find("web-01", prove(secret, CSR), CSR, epoch_now())
    assert token is not None
    store.consume(token)
    assert store.purge(epoch_now()) == 0
    assert store.purge(epoch_now() + 61 + KEPT_AFTER_S) == 1
    assert TokenStore(str(tmp_path / "none")).find("a", "0" * 64, CSR, 0) is None
