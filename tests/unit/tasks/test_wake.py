"""Schedulers are woken, all of them, wherever the directory is and whatever else lies in it."""

from __future__ import annotations

import os
import select
import stat
from contextlib import closing
from pathlib import Path

import pytest

from ctrl_exec.common.errors import StorageError
from ctrl_exec.tasks.clock.wake import WakeSocket, wake_schedulers


def is_readable(socket: WakeSocket) -> bool:
    return bool(select.select([socket], [], [], 0)[0])


def test_all_of_them_are_woken(tmp_path: Path) -> None:
    """Each once until it has looked, however often it was woken."""
    directory = str(tmp_path / "wake")
    first, second = WakeSocket(directory), WakeSocket(directory)
    assert not is_readable(first)
    assert not first.drain()
    for _ in range(1000):  # more than a queue takes
        wake_schedulers(directory)
    for each in (first, second):
        assert is_readable(each)
        assert each.drain()
        assert not each.drain()
        assert not is_readable(each)
    second.close()
    wake_schedulers(directory)
    assert first.drain()
    first.close()
    assert os.listdir(directory) == []


def test_what_dead_ones_left_is_removed(tmp_path: Path) -> None:
    """Whatever nobody listens at goes when it is come across."""
    directory = tmp_path / "wake"
    with closing(WakeSocket(str(directory))) as alive:
        dead = WakeSocket(str(directory))
        dead._socket.close()
        (directory / "stray").write_text("")
        wake_schedulers(str(directory))
        assert len(os.listdir(directory)) == 1
        assert alive.drain()


def test_where_nobody_listens(tmp_path: Path) -> None:
    wake_schedulers(str(tmp_path / "nowhere"))
    (tmp_path / "file").write_text("")
    wake_schedulers(str(tmp_path / "file"))


def test_a_long_path(tmp_path: Path) -> None:
    """Longer than a socket's address may be."""
    directory = tmp_path / ("d" * 120) / "wake"
    woken = WakeSocket(str(directory))
    wake_schedulers(str(directory))
    assert woken.drain()
    woken.close()
    assert os.listdir(directory) == []


def test_only_the_group_may_wake(tmp_path: Path) -> None:
    woken = WakeSocket(str(tmp_path / "wake"))
    [path] = (tmp_path / "wake").iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o2770
    woken.close()


def test_a_directory_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "wake").write_text("")
    with pytest.raises(StorageError, match="wake"):
        WakeSocket(str(tmp_path / "wake"))
