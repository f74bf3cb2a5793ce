"""The largest arguments that are allowed reach the script, whatever letters they are made of."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ctrl_exec.common.messages import MAX_ARG_BYTES, MAX_ARGS_BYTES
from tests.support.fleet import Fleet


@pytest.mark.parametrize("letter", ["a", "é", "字", "😀"], ids=["ascii", "latin", "cjk", "emoji"])
def test_half_a_megabyte_of_arguments_arrives(fleet: Fleet, letter: str) -> None:
    """In JSON a letter may be six bytes for two; the limits count what the script gets."""
    one = letter * (MAX_ARG_BYTES // len(letter.encode()))
    count = MAX_ARGS_BYTES // len(one.encode())
    wish = {"hosts": ["host-a"], "script": "hello", "args": [one] * count}
    answer: Any = fleet.http("POST", "/run", json.dumps(wish, ensure_ascii=False).encode()).json
    (result,) = answer["results"]
    assert result["state"] == "ok", result.get("error")
    assert result["stdout"] == f"hello {' '.join([one] * count)}\n"


@pytest.mark.parametrize("letter", ["é", "\x01", '"'], ids=["latin", "control", "quote"])
def test_the_command_line_takes_them_too(fleet: Fleet, letter: str) -> None:
    """What the kernel lets through to us goes on to the agent, however JSON has to write it."""
    one = letter * ((MAX_ARG_BYTES - 1) // len(letter.encode()))
    count = MAX_ARGS_BYTES // len(one.encode())
    document: Any = fleet.cli_json("run", "host-a", "hello", "--", *[one] * count)
    (result,) = document["results"]
    assert result["state"] == "ok", result.get("error")
    assert result["stdout"] == f"hello {' '.join([one] * count)}\n"
