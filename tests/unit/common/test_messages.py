"""The agent wire: what is sent is read back, what is malformed is named by its field."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctrl_exec.common import messages
from ctrl_exec.common.errors import InvalidInputError, MessageError
from ctrl_exec.common.messages import HostResult, RunCommand

ARGS = st.lists(
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20), max_size=5
)


@given(ARGS, st.text(max_size=10), st.sampled_from([None, True, False]), st.sampled_from([None, 1, 600]))
def test_a_command_round_trips(
    args: list[str], username: str, is_async: bool | None, timeout: int | None
) -> None:
    command = RunCommand("deploy", tuple(args), "ab" * 8, username, "s3cret", is_async, timeout, "base64")
    assert messages.decode_run(messages.encode_run(command)) == command


def test_absent_options_are_not_sent_so_that_older_peers_see_the_plain_message() -> None:
    body = json.loads(messages.encode_run(RunCommand("deploy", ("a",), "ab" * 8, "u", "t")))
    assert body == {"script": "deploy", "args": ["a"], "reqid": "ab" * 8, "username": "u", "token": "t"}


def test_unknown_keys_are_ignored_on_this_wire() -> None:
    found = messages.decode_run(b'{"script": "a", "reqid": "abababab", "later": {}}')
    assert found == RunCommand("a", (), "abababab")


def test_streaming_and_secrets_round_trip_and_no_representation_shows_a_secret() -> None:
    command = RunCommand("a", (), "abababab", token="t0ken", stream=True, secrets={"DB": "pass-word"})
    assert messages.decode_run(messages.encode_run(command)) == command
    assert "pass-word" not in repr(command)
    assert "t0ken" not in repr(command)


@pytest.mark.parametrize(
    "wrong", [["hush"], {"a": 1}, "hush", {str(each): "hush" for each in range(257)}, {"a": "hush" * 70_000}]
)
def test_wrong_secrets_are_refused_without_repeating_them(wrong: object) -> None:
    with pytest.raises(MessageError) as caught:
        messages.decode_run(json.dumps(GOOD | {"secrets": wrong}).encode())
    assert caught.value.field == "secrets"
    assert "hush" not in str(caught.value)


GOOD: dict[str, object] = {"script": "a", "reqid": "abababab"}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"script": None}, "script"), ({"script": "../x"}, "script"), ({"reqid": 1}, "reqid"), ({"args": "x"}, "args"),
        ({"args": [1]}, "args"), ({"args": ["a\0b"]}, "args"), ({"args": ["x"] * 1025}, "args"),
        ({"args": ["x" * 131_072]}, "args"), ({"args": ["x" * 131_000] * 5}, "args"), ({"args": ["\ud800"]}, "args"),
        ({"username": 1}, "username"), ({"token": []}, "token"), ({"async": "yes"}, "async"), ({"timeout": 0}, "timeout"),
        ({"timeout": True}, "timeout"), ({"stream": 1}, "stream"), ({"timeout": 1.5}, "timeout"), ({"encoding": "latin-1"}, "encoding"),
    ],
)  # fmt: skip
def test_a_wrong_field_is_named(change: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        messages.decode_run(json.dumps(GOOD | change).encode())
    assert caught.value.field == field


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{", b"\xff", b'{"a": 1, "a": 2}', b'{"a": NaN}', b"[" * 100_000, b'"x"', b"null"]
)
def test_a_body_that_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(MessageError):
        messages.parse_object(body)


@given(st.binary(max_size=200))
def test_any_bytes_are_decoded_or_refused(body: bytes) -> None:
    for decode in (messages.parse_object, messages.decode_run):
        try:
            decode(body)
        except InvalidInputError as error:
            assert str(error)


def test_a_result_shows_the_documented_keys() -> None:
    result = HostResult("web-01", "deploy", "ok", "ab12", 0, "out\n", "", 12)
    assert result.as_json() == {
        "host": "web-01", "script": "deploy", "exit": 0, "stdout": "out\n", "stderr": "", "rtt": "12ms",
        "reqid": "ab12", "state": "ok",
    }  # fmt: skip
    failed = HostResult(
        "web-01", "deploy", "running", "ab12", error="read timeout after 60s", truncated=(0, 7)
    )
    assert failed.as_json()["exit"] == -1
    assert failed.as_json()["error"] == "read timeout after 60s"
    assert failed.as_json()["truncated"] == {"stdout": 0, "stderr": 7}
    assert not failed.is_final
    assert result.is_final


@given(
    st.builds(
        HostResult, st.text(max_size=5), st.text(max_size=5), st.sampled_from(messages.STATES), st.just("ab"),
        st.integers(-1, 255), st.text(max_size=9), st.text(max_size=9), st.integers(0, 10**6), st.text(max_size=9),
        st.tuples(st.integers(0, 9), st.integers(0, 9)),
    )
)  # fmt: skip
def test_a_result_round_trips(result: HostResult) -> None:
    assert HostResult.from_json(json.loads(json.dumps(result.as_json()))) == result


@pytest.mark.parametrize(
    "document", [[], {"host": "a"}, {"host": "a", "state": "fine"}, {"host": 1, "state": "ok"}]
)
def test_a_result_that_is_none_is_refused(document: object) -> None:
    with pytest.raises(MessageError):
        HostResult.from_json(document)


def test_output_becomes_text() -> None:
    assert messages.output_text(b"\xffok", None) == "\ufffdok"
    assert messages.output_text(b"\xffok", "base64") == "/29r"
