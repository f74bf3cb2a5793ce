"""The trust map and the revoked serials: how they are read, judged and changed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctrl_exec.common.certificate import parse_certificate, pem_to_der
from ctrl_exec.common.errors import ConflictError, StorageError
from ctrl_exec_agent.trust import (
    add_serial,
    judge,
    load_revoked,
    load_trust_map,
    remove_serial,
    trust_warnings,
)
from tests.support.pki import CLIENT, TestCA


def test_serials_are_read_as_hex_however_they_are_written(tmp_path: Path):
    path = tmp_path / "map"
    path.write_text("# dispatchers\n\n0x0A1b main\n00:C3:d4 other.example\n12 third\nabc\n")
    assert load_trust_map(str(path)).serials == {
        "a1b": "main",
        "c3d4": "other.example",
        "12": "third",
        "abc": "abc",
    }


def test_a_wrong_line_grants_nothing_and_is_warned_about(tmp_path: Path):
    path = tmp_path / "map"
    path.write_text("xyz main\na1 ../evil\nb2 two words\nc3 good\n")
    found = load_trust_map(str(path))
    assert found.serials == {"c3": "good"}
    assert [warning.partition(": ")[0] for warning in found.warnings] == [
        f"{path}:{line}" for line in (1, 2, 3)
    ]
    assert len(trust_warnings(str(path), str(tmp_path / "none"))) == 3


def test_no_file_trusts_nobody_and_revokes_nothing(tmp_path: Path):
    assert load_trust_map(str(tmp_path / "none")).serials == {}
    assert load_revoked(str(tmp_path / "none")) == frozenset()
    assert (
        "every request will be refused" in trust_warnings(str(tmp_path / "none"), str(tmp_path / "none"))[0]
    )


def test_a_revocation_list_that_cannot_be_read_whole_is_an_error(tmp_path: Path):
    path = tmp_path / "revoked"
    path.write_text("a1 # why\n0xB2\n")
    assert load_revoked(str(path)) == {"a1", "b2"}
    path.write_text("a1\nnonsense\n")
    with pytest.raises(StorageError, match="line 2"):
        load_revoked(str(path))


@given(st.binary(max_size=400))
def test_any_bytes_are_a_map(content: bytes):
    import tempfile

    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        for serial, dispatcher in load_trust_map(file.name).serials.items():
            assert set(serial) <= set("0123456789abcdef")
            assert "/" not in dispatcher


def test_serials_are_added_and_removed_by_their_owner_only(tmp_path: Path):
    path = str(tmp_path / "map")
    add_serial(path, "a1", "main")
    add_serial(path, "b2", "other")
    add_serial(path, "a1", "main")
    assert os.stat(path).st_mode & 0o777 == 0o644
    for change in (add_serial, remove_serial):
        with pytest.raises(ConflictError, match="another dispatcher"):
            change(path, "b2", "main")
    remove_serial(path, "a1", "main")
    remove_serial(path, "a1", "main")
    assert load_trust_map(path).serials == {"b2": "other"}


def test_concurrent_changes_are_all_kept(tmp_path: Path):
    from ctrl_exec.common.process import fork_child, wait_status

    path = str(tmp_path / "map")

    def add(first: int) -> None:
        for number in range(first, first + 10):
            add_serial(path, f"a{number:x}", "main")

    children = [fork_child(lambda first=first: add(first)) for first in range(0, 40, 10)]
    assert [wait_status(child) for child in children] == [(0, 0)] * 4
    assert len(load_trust_map(path).serials) == 40


def test_verdicts(tmp_path: Path):
    leaf = TestCA(tmp_path / "pki").issue("d", usages=(CLIENT,))
    certificate = parse_certificate(pem_to_der(leaf.crt.read_text()))
    trusted, revoked = tmp_path / "map", tmp_path / "revoked"

    def verdict() -> tuple[str, str]:
        found = judge(certificate, str(trusted), str(revoked))
        assert found.is_trusted == (found.error == "")
        return found.dispatcher, found.error

    assert verdict() == ("", "serial mismatch")
    trusted.write_text(f"{leaf.serial} main\n")
    assert verdict() == ("main", "")
    revoked.write_text(f"{leaf.serial}\n")
    assert verdict() == ("", "certificate revoked")
    revoked.write_text("?\n")
    assert verdict() == ("", "serial mismatch")
