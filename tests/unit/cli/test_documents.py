"""The JSON of the daemon's socket, read and written without `json`: the same as with it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctrl_exec.cli.documents import read_document, write_document

TEXTS = st.text(st.characters(codec="utf-8"))
DOCUMENTS = st.recursive(
    TEXTS | st.integers() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)


@given(DOCUMENTS)
def test_what_is_written_is_what_json_reads(document: object) -> None:
    assert json.loads(write_document(document)) == document
    assert read_document(write_document(document)) == document


@given(DOCUMENTS, st.sampled_from([None, 1]), st.booleans())
def test_what_json_writes_is_read(document: object, indent: int | None, is_ascii: bool) -> None:
    text = json.dumps(document, indent=indent, ensure_ascii=is_ascii) + "\n"
    assert read_document(text.encode("utf-8")) == document


def test_a_lone_surrogate_is_written_as_an_escape() -> None:
    """Which only an escape can carry: arguments that are no UTF-8."""
    assert json.loads(write_document({"args": ["\udcff"]})) == {"args": ["\udcff"]}


@pytest.mark.parametrize("body", [b"", b"abc", b"{", b'{"a": 1} x', b'"\xff"', b"[1,]", b"\xef\xbb\xbf{}"])
def test_what_is_no_json_is_a_value_error(body: bytes) -> None:
    with pytest.raises(ValueError):
        read_document(body)
