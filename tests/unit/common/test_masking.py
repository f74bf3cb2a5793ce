"""Secrets are replaced in a stream, wherever its chunks end."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctrl_exec.common.masking import MASK, Masker, masked


def through(secrets: list[str], chunks: list[bytes]) -> bytes:
    """What a masker shows of the chunks."""
    masker = Masker(secrets)
    return b"".join(map(masker.feed, chunks)) + masker.flush()


@pytest.mark.parametrize("size", range(1, 12))
def test_a_secret_cut_by_chunks_is_masked(size: int) -> None:
    """Whatever the size of the chunks."""
    text = b"before s3cr3t-word after s3cr3t-wor s3cr3t-word"
    chunks = [text[at : at + size] for at in range(0, len(text), size)]
    assert through(["s3cr3t-word"], chunks) == b"before ******** after s3cr3t-wor ********"


def test_a_secret_that_begins_with_another_one_is_masked_whole() -> None:
    """No tail of the longer one is left behind."""
    assert through(["abcd", "abcdefgh"], [b"x abcd", b"efgh y abcdx"]) == b"x ******** y ********x"


def test_what_looks_like_a_beginning_is_shown_in_the_end() -> None:
    """Nothing is lost, nothing waits for longer than it must."""
    masker = Masker(["secret"])
    assert masker.feed(b"abc sec") == b"abc "
    assert masker.feed(b"ond") == b"second"
    assert masker.feed(b" secre") == b" "
    assert masker.flush() == b"secre"


def test_each_line_of_a_secret_is_masked_too() -> None:
    """A private key is often printed line by line."""
    assert through(["line one\nline two"], [b"> line two\n"]) == b"> ********\n"


@pytest.mark.parametrize("is_ascii", [True, False])
def test_a_secret_is_masked_as_it_stands_in_json_too(is_ascii: bool) -> None:
    """A script that prints its standard input prints it so."""
    secret = 'a"b\\c\nd-zwölf'
    shown = masked(json.dumps({"KEY": secret}, ensure_ascii=is_ascii), [secret])
    assert shown == '{"KEY": "********"}'


def test_a_secret_of_two_letters_is_not_looked_for() -> None:
    """It would hide the output and give itself away."""
    assert masked("a 42 b", ["42"]) == "a 42 b"


@given(
    st.lists(st.text("ab\n", min_size=3, max_size=6), max_size=4),
    st.lists(st.text("abx\n", max_size=8), max_size=8),
)
def test_chunks_make_no_difference_and_no_secret_is_left(secrets: list[str], pieces: list[str]) -> None:
    """The same as of the whole; no secret of one line is to be found in it."""
    chunks = [each.encode() for each in pieces]
    shown = through(secrets, chunks)
    assert shown == through(secrets, [b"".join(chunks)])
    for part in shown.split(MASK):
        assert not any(secret.encode() in part for secret in secrets if len(secret) >= 3)
