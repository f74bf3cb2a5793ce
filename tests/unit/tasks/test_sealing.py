"""Secrets at rest: they open where they belong and nowhere else, also after the key has changed."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from ctrl_exec.common.errors import ServiceError, StorageError
from ctrl_exec.tasks.sealing import (
    Sealer,
    add_key,
    drop_old_keys,
    key_id_of,
    key_ids,
    make_key,
    seal_parameters,
    unseal_parameters,
)

PLACE = ("secrets", "01J8ZWXQ1572KC6XGE7T74PT4P", "PASSWORD")


@pytest.fixture
def sealer(tmp_path: Path) -> Sealer:
    return Sealer(str(tmp_path / "secrets.key"))


def test_what_is_sealed_opens_in_its_place_only(sealer: Sealer) -> None:
    sealed = sealer.seal(PLACE, b"hunter2")
    assert b"hunter2" not in sealed
    assert sealer.unseal(PLACE, sealed) == b"hunter2"
    assert sealer.seal(PLACE, b"hunter2") != sealed, "a nonce is used once"
    for at in range(3):
        elsewhere = (*PLACE[:at], "other", *PLACE[at + 1 :])
        with pytest.raises(StorageError, match="belongs elsewhere"):
            sealer.unseal(elsewhere, sealed)  # type: ignore[arg-type]
    for at in (0, 2, 8, len(sealed) - 1):
        changed = sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :]
        with pytest.raises(StorageError):
            sealer.unseal(PLACE, changed)
    with pytest.raises(StorageError):
        sealer.unseal(PLACE, sealed[:10])


def test_the_key_is_for_nobody_else(sealer: Sealer) -> None:
    sealed = sealer.seal(PLACE, b"x")
    path = Path(sealer.path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o640)
    with pytest.raises(StorageError, match="chmod 600"):
        Sealer(sealer.path).unseal(PLACE, sealed)


def test_a_key_follows_another(sealer: Sealer) -> None:
    first = sealer.seal(PLACE, b"x")
    assert make_key(sealer.path) == key_id_of(first), "there is one already"
    newest = add_key(sealer.path)
    second = sealer.seal(PLACE, b"x")
    assert key_ids(sealer.path) == (key_id_of(first), newest)
    assert key_id_of(second) == newest
    assert sealer.unseal(PLACE, first) == b"x"
    drop_old_keys(sealer.path)
    fresh = Sealer(sealer.path)
    assert fresh.unseal(PLACE, second) == b"x"
    with pytest.raises(StorageError, match="not here"):
        fresh.unseal(PLACE, first)


@pytest.mark.parametrize("content", ["zz x\n", "00112233 short\n", "00112233 QUJD\n", "\n"])
def test_a_damaged_file_is_said(sealer: Sealer, content: str) -> None:
    Path(sealer.path).write_text(content)
    Path(sealer.path).chmod(0o600)
    with pytest.raises(StorageError, match="no key"):
        sealer.seal(PLACE, b"x")


def test_without_a_place_for_a_key_it_is_said_who_makes_one(tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match="secrets init"):
        Sealer(str(tmp_path / "nowhere" / "secrets.key")).seal(PLACE, b"x")


def test_parameters_of_an_execution(sealer: Sealer) -> None:
    sealed = seal_parameters(sealer, {"PASSWORD": "hunter2"})
    assert unseal_parameters(sealer, sealed) == {"PASSWORD": "hunter2"}
    assert unseal_parameters(sealer, None) == {}
