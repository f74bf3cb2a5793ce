"""Output kept: in memory, in a file, cut at its limit, and when the disk has no room."""

from __future__ import annotations

import resource
import signal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctrl_exec.common.process import fork_child, wait_status
from ctrl_exec_agent.kept_output import MEMORY_BYTES, FiledOutput, KeptOutput, TextOutput
from tests.support.descriptors import open_descriptors


def whole(output: KeptOutput | FiledOutput | TextOutput) -> bytes:
    """All of it, read in small pieces."""
    found = b""
    while piece := output.read(len(found), 1000):
        found += piece
    return found


def test_a_little_stays_in_memory_until_it_is_flushed(tmp_path: Path):
    path = tmp_path / "out"
    output = KeptOutput(str(path), 1000)
    output.append(b"abc")
    assert (output.size(), output.settled(), output.is_filed, path.exists()) == (3, 0, False, False)
    output.flush()
    assert (output.size(), output.settled(), output.is_filed, path.read_bytes()) == (3, 3, True, b"abc")
    output.append(b"def")
    assert (output.settled(), whole(output)) == (3, b"abcdef")
    assert oct(path.stat().st_mode & 0o777) == "0o640"
    output.close()


def test_much_goes_to_the_file_by_itself(tmp_path: Path):
    output = KeptOutput(str(tmp_path / "out"), 1 << 20)
    output.append(b"x" * MEMORY_BYTES)
    assert output.settled() == MEMORY_BYTES
    output.close()


@given(st.lists(st.binary(max_size=40), max_size=8), st.integers(0, 100))
def test_what_exceeds_the_limit_is_counted(chunks: list[bytes], limit: int):
    output = KeptOutput(None, limit)
    for chunk in chunks:
        output.append(chunk)
    given_ = b"".join(chunks)
    assert whole(output) == given_[:limit]
    assert output.dropped == max(0, len(given_) - limit)
    assert output.settled() == output.size()
    assert not output.has_fresh


def test_a_follower_sees_what_is_in_the_file_and_nothing_before_there_is_one(tmp_path: Path):
    path = tmp_path / "out"
    output, follower = KeptOutput(str(path), 1000), FiledOutput(str(path))
    assert (follower.size(), follower.read(0, 10)) == (0, b"")
    output.append(b"abc")
    output.flush()
    assert whole(follower) == b"abc"
    output.append(b"def")
    output.flush()
    assert (follower.size(), follower.read(3, 10)) == (6, b"def")
    follower.close()
    output.close()


def test_a_link_in_its_place_is_not_followed(tmp_path: Path):
    (tmp_path / "target").write_bytes(b"precious")
    (tmp_path / "out").symlink_to(tmp_path / "target")
    output = KeptOutput(str(tmp_path / "out"), 1000)
    output.append(b"abc")
    output.flush()
    assert (output.is_filed, whole(output)) == (False, b"abc")
    assert (tmp_path / "target").read_bytes() == b"precious"
    assert FiledOutput(str(tmp_path / "out")).size() == 0


def test_where_the_disk_has_no_room_for_the_rest_all_of_it_is_kept_in_memory(tmp_path: Path):
    path = tmp_path / "out"

    def fill() -> int:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        output = KeptOutput(str(path), 10_000)
        output.append(b"a" * 600)
        output.flush()
        assert output.is_filed
        output.append(b"b" * 600)
        output.flush()
        assert not output.is_filed
        output.append(b"c" * 10)
        assert whole(output) == b"a" * 600 + b"b" * 600 + b"c" * 10
        assert output.settled() == output.size()
        assert not path.exists()
        return 7

    assert wait_status(fork_child(fill)) == (7, 0)


def test_text_of_a_record_is_bytes_again():
    assert whole(TextOutput("zwölf", None)) == "zwölf".encode()
    assert whole(TextOutput("AAH/", "base64")) == b"\0\1\xff"


def test_no_descriptor_is_left_open(tmp_path: Path):
    before = open_descriptors()
    output = KeptOutput(str(tmp_path / "out"), 1000)
    follower = FiledOutput(str(tmp_path / "out"))
    assert follower.size() == 0
    output.append(b"abc")
    output.sync()
    assert follower.size() == 3
    output.close()
    follower.close()
    assert open_descriptors() == before


@pytest.mark.parametrize("at", [0, 2, 5, 6, 100])
def test_reading_begins_anywhere(tmp_path: Path, at: int):
    output = KeptOutput(str(tmp_path / "out"), 1000)
    output.append(b"abc")
    output.flush()
    output.append(b"def")
    found = b""
    while piece := output.read(at + len(found), 2):
        found += piece
    assert found == b"abcdef"[at:]
    output.close()
