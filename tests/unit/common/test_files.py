"""State files: whole or absent, right mode, never through a link."""

from __future__ import annotations

import multiprocessing
import os
import stat
from pathlib import Path

import pytest

from ctrl_exec.common import files
from ctrl_exec.common.errors import StorageError


def test_an_atomic_write_has_content_and_mode(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    files.write_atomic(str(path), b"one", 0o640)
    files.write_atomic(str(path), b"two", 0o600)
    assert path.read_bytes() == b"two"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [each.name for each in tmp_path.iterdir()] == ["a.json"]


def test_a_write_replaces_a_link_and_not_its_target(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("kept")
    (tmp_path / "link").symlink_to(target)
    files.write_atomic(str(tmp_path / "link"), b"new")
    assert target.read_text() == "kept"
    assert not (tmp_path / "link").is_symlink()


def test_an_exclusive_write_keeps_what_is_there(tmp_path: Path) -> None:
    path = str(tmp_path / "a")
    files.write_atomic(path, b"one", exclusive=True)
    with pytest.raises(FileExistsError):
        files.write_atomic(path, b"two", exclusive=True)
    assert (tmp_path / "a").read_bytes() == b"one"
    assert os.listdir(tmp_path) == ["a"]


def test_a_failed_write_names_the_path_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="nowhere/a"):
        files.write_atomic(str(tmp_path / "nowhere" / "a"), b"x")
    (tmp_path / "dir").mkdir()
    with pytest.raises(StorageError):
        files.write_atomic(str(tmp_path / "dir"), b"x")
    assert os.listdir(tmp_path) == ["dir"]


def test_a_directory_behind_a_link_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(StorageError):
        files.write_atomic(str(tmp_path / "link" / "a"), b"x")


def test_reading_is_bounded_and_refuses_what_is_no_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"12345")
    assert files.read_bounded(str(path), 5) == b"12345"
    with pytest.raises(StorageError, match="larger than 4"):
        files.read_bounded(str(path), 4)
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(StorageError, match="symbolic link"):
        files.read_bounded(str(tmp_path / "link"), 5)
    assert files.read_bounded(str(tmp_path / "link"), 5, follow=True) == b"12345"
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(StorageError, match="not a regular file"):
        files.read_bounded(str(tmp_path / "fifo"), 5)
    with pytest.raises(StorageError, match="larger than"):
        files.read_bounded("/proc/kallsyms", 100)
    with pytest.raises(FileNotFoundError):
        files.read_bounded(str(tmp_path / "none"), 5)


def test_json_round_trips_and_garbage_is_named(tmp_path: Path) -> None:
    path = str(tmp_path / "a.json")
    assert files.read_json(path) is None
    files.write_json(path, {"ä": ["\ud800", 1]})
    assert (tmp_path / "a.json").read_bytes().startswith(b"{")
    (tmp_path / "a.json").write_text('{"a": ')
    with pytest.raises(StorageError, match="is not JSON"):
        files.read_json(path)


def test_made_directories_get_the_mode_and_existing_ones_keep_theirs(tmp_path: Path) -> None:
    os.umask(os.umask(0o077))
    tmp_path.chmod(0o711)
    files.make_dirs(str(tmp_path / "a" / "b"), 0o2770)
    files.make_dirs(str(tmp_path / "a" / "b"), 0o700)
    assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == 0o2770
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o711
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        files.make_dirs(str(tmp_path / "file" / "x"))


def test_remove_says_whether_there_was_something(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    assert files.remove(str(tmp_path / "a"))
    assert not files.remove(str(tmp_path / "a"))
    with pytest.raises(StorageError):
        files.remove(str(tmp_path))


def _hold(path: str, ready: object) -> None:
    fd = files.open_lock(path)
    assert files.try_lock(fd)
    ready.set()  # type: ignore[attr-defined]
    import signal

    signal.pause()


def test_a_lock_is_exclusive_and_freed_by_death(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    holder = context.Process(target=_hold, args=(path, ready))
    holder.start()
    assert ready.wait(60)
    fd = files.open_lock(path)
    assert not files.try_lock(fd)
    assert not files.try_lock(fd, shared=True)
    holder.kill()
    holder.join()
    assert files.try_lock(fd)
    os.close(fd)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o660


def test_a_lock_file_is_never_opened_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StorageError, match="symbolic link"):
        files.open_lock(str(tmp_path / "link"))
    assert not (tmp_path / "elsewhere").exists()


def test_who_may_write_besides_us(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("")
    path.chmod(0o644)
    assert not files.is_writable_by_others(path.stat(), os.getuid())
    path.chmod(0o664)
    assert files.is_writable_by_others(path.stat(), os.getuid())
    path.chmod(0o600)
    if os.getuid() == 0:
        os.chown(path, 12345, 0)
        assert files.is_writable_by_others(path.stat(), 0)


def test_temporaries_are_recognised() -> None:
    assert files.is_temporary(".tmp-1-2")
    assert not files.is_temporary("web-01.json")


@pytest.mark.root
@pytest.mark.skipif(os.getuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_is_a_named_error_and_leaves_the_old_file(tmp_path: Path) -> None:
    import subprocess

    mount = tmp_path / "small"
    mount.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(mount)], check=False)
    if made.returncode:
        pytest.skip("this machine does not let us mount")
    try:
        files.write_atomic(str(mount / "a"), b"old")
        with pytest.raises(StorageError, match="No space left"):
            files.write_atomic(str(mount / "a"), b"x" * 200_000)
        assert (mount / "a").read_bytes() == b"old"
        assert os.listdir(mount) == ["a"]
    finally:
        subprocess.run(["umount", str(mount)], check=True)
