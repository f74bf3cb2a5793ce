"""JSON by the C part alone is JSON as `json` reads and writes it, words of errors included."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctrl_exec.common.json_text import decoder, dumps, encoder, loads

ROOT = Path(__file__).parents[3]
ATOMS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
DOCUMENTS = st.recursive(ATOMS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))


@given(DOCUMENTS, st.booleans())
def test_it_writes_what_json_writes_and_reads_it_again(document: Any, is_ascii: bool) -> None:
    compact = encoder(ensure_ascii=is_ascii, separators=(",", ":"))
    assert compact(document) == json.dumps(document, ensure_ascii=is_ascii, separators=(",", ":"))
    assert dumps(document) == json.dumps(document)
    assert loads(dumps(document)) == document
    assert loads(f" \t\n\r{compact(document)}\n".encode("utf-8", "surrogatepass")) == document


@pytest.mark.parametrize(
    "text",
    ["", " ", "{", "[1,]", "1 2", '{"a":1}x', '"\n"', "nul", "\u00a01", "\ufeff{}", "{a:1}", "\x0c1"],
)
def test_what_is_no_json_is_refused_in_the_words_of_json(text: str) -> None:
    with pytest.raises(ValueError) as theirs:
        json.loads(text)
    with pytest.raises(ValueError) as ours:
        loads(text)
    assert str(ours.value) == str(theirs.value)


@given(st.text(alphabet='{}[]":,.0123456789eE+-truefalsn \n\\u'))
def test_it_reads_what_json_reads(text: str) -> None:
    try:
        expected = json.loads(text)
    except ValueError:
        with pytest.raises(ValueError):
            loads(text)
    else:
        assert loads(text) == expected


def test_hooks_are_asked() -> None:
    def refuse(name: str) -> Any:
        raise ValueError(f"no {name}")

    decode = decoder(object_pairs_hook=tuple, parse_constant=refuse)
    assert decode('{"a": {}, "a": 1}') == (("a", ()), ("a", 1))
    with pytest.raises(ValueError, match="no NaN"):
        decode("[NaN]")


def test_bottomless_nesting_is_an_error_and_no_crash() -> None:
    with pytest.raises(RecursionError):
        loads("[" * 200_000)


def test_what_is_no_document_is_refused() -> None:
    with pytest.raises(TypeError, match="Object of type object is not JSON serializable"):
        dumps([object()])
    assert encoder(default=str)({"a": Path("/x")}) == '{"a": "/x"}'


def test_neither_json_nor_regular_expressions_are_loaded_for_it() -> None:
    program = (
        "import sys; from ctrl_exec.common.json_text import dumps, loads; print(loads(dumps({'a': [1]})));"
        "print({'json', 're', 'enum', 'collections'} & set(sys.modules))"
    )
    ended = subprocess.run(
        [sys.executable, "-S", "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert ended.stdout == "{'a': [1]}\nset()\n"


@pytest.mark.parametrize(
    "reading",
    ["loads('{')", "loads('{\"a\" 1}')", "loads('\"open')", "end_of_string('\"open', 1)"],
)
def test_what_is_no_json_is_refused_where_json_was_never_loaded(reading: str) -> None:
    """The C part's own error is a class of a module that nobody has loaded there."""
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from ctrl_exec.common.json_text import end_of_string, loads\n"
        "assert 'json' not in sys.modules\n"
        f"try:\n    {reading}\nexcept ValueError:\n    print('refused')\n"
    )
    made = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True
    )
    assert made.stdout == "refused\n"
