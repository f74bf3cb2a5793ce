"""Templates: a name becomes its content within one argument, and nothing more."""

from __future__ import annotations

import json
from urllib.parse import parse_qs

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctrl_exec.common.errors import InvalidInputError
from ctrl_exec.tasks.templates import (
    json_escaped,
    mentions_name,
    names_in,
    query_escaped,
    render_argument,
    substitute,
)

CONTENTS = {"A": "one two", "B": "-x", "N": "-5", "EMPTY": "", "NESTED": "{{A}}"}


@pytest.mark.parametrize(
    ("text", "names", "made"),
    [
        ("plain", (), "plain"), ("{{A}}", ("A",), "one two"), ("--to={{A}}/{{B}}", ("A", "B"), "--to=one two/-x"),
        ("{{{{A}}", (), "{{A}}"), ("{{{{{{A}}", ("A",), "{{one two"), ("}}", (), "}}"), ("{A}", (), "{A}"),
        ("{{NESTED}}", ("NESTED",), "{{A}}"), ("{{EMPTY}}", ("EMPTY",), ""), ("{{NOPE}}!", ("NOPE",), "!"),
    ],
)  # fmt: skip
def test_names_are_found_and_replaced_once(text: str, names: tuple[str, ...], made: str) -> None:
    assert names_in(text) == names
    assert substitute(text, CONTENTS) == made


@pytest.mark.parametrize("text", ["{{", "{{a}}", "{{ A }}", "{{A", "{{1A}}", "{{{{{{", "{{A}}{{"])
def test_what_begins_no_template_is_said(text: str) -> None:
    with pytest.raises(InvalidInputError, match="literal"):
        names_in(text)


def test_an_argument_does_not_become_an_option_through_a_value() -> None:
    assert render_argument("--to={{B}}", CONTENTS, ()) == "--to=-x"
    assert render_argument("-{{A}}", CONTENTS, ()) == "-one two"
    for text in ("{{B}}", "{{EMPTY}}{{B}}"):
        with pytest.raises(InvalidInputError, match="B: an argument"):
            render_argument(text, CONTENTS, ("N",))
    assert render_argument("{{B}}", CONTENTS, ("B",)) == "-x"
    assert render_argument("{{N}}", CONTENTS, ("N",)) == "-5"


def test_where_no_name_may_be_braces_have_no_meaning() -> None:
    assert mentions_name("docker ps --format {{NAME}}")
    assert not mentions_name("docker ps --format '{{.Names}}'")
    assert not mentions_name("{{{{NAME}}")


@given(st.text())
def test_escapes_bring_the_content_back(text: str) -> None:
    assert json.loads(substitute('{"k": "{{A}}"}', {"A": text}, json_escaped)) == {"k": text}
    plain = text.encode("utf-8", "replace").decode()
    query = substitute("k={{A}}&l=1", {"A": plain}, query_escaped)
    assert parse_qs(query, keep_blank_values=True) == {"k": [plain], "l": ["1"]}
