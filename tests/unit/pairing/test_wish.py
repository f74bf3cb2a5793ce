"""Decoding `POST /pair`: what becomes a wish, and that everything else is refused by name."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctrl_exec.common.errors import InvalidInputError, InvalidNameError
from ctrl_exec.common.pairing_code import format_token
from ctrl_exec.pairing.exchange import INVALID_REQUEST, TOO_LARGE, Wish, decode_wish, refuse

CA = "ab" * 32
COMMIT = "cd" * 32
PLAIN = {"hostname": "Web-01", "csr": "CSR", "nonce": "0" * 32}


def decode(**changes: object) -> Wish:
    return decode_wish(json.dumps(PLAIN | changes).encode(), "192.0.2.1", CA)


def test_the_plainest_request_takes_its_defaults() -> None:
    """Name folded, address of the caller, port 7443, looked up by name, legacy."""
    assert decode() == Wish("web-01", "CSR", "0" * 32, "192.0.2.1", 7443, "hostname", None, "")


def test_all_wishes_are_taken() -> None:
    """Address, port, lookup, commitment and token's secret."""
    token = format_token(CA, "S" * 43)
    found = decode(ip="2001:db8::1", port=1, lookup_by="ip", protocol=2, commit=COMMIT, token=token, more=[1])
    assert found == Wish("web-01", "CSR", "0" * 32, "2001:db8::1", 1, "ip", COMMIT, "S" * 43)


def test_older_peers_may_send_the_port_as_text_and_empty_wishes() -> None:
    """What their language makes of numbers and unset values is understood."""
    found = decode(port="8443", ip="", lookup_by="", token="")
    assert (found.port, found.ip, found.lookup_by, found.secret) == (8443, "192.0.2.1", "hostname", "")


def test_a_newer_protocol_is_spoken_to_in_ours() -> None:
    """Version 3 of tomorrow must bring what version 2 needs."""
    assert decode(protocol=3, commit=COMMIT).commit == COMMIT
    with pytest.raises(InvalidInputError, match="commit"):
        decode(protocol=3)


@pytest.mark.parametrize("protocol", [None, 0, 1, -1])
def test_a_token_needs_protocol_2(protocol: object) -> None:
    """In a legacy request a token is refused, whoever sent it."""
    with pytest.raises(InvalidInputError, match="legacy"):
        decode(protocol=protocol, token=format_token(CA, "S" * 43))


def test_a_token_of_another_ca_is_refused_unseen() -> None:
    """The error does not repeat the secret."""
    with pytest.raises(InvalidInputError) as caught:
        decode(protocol=2, commit=COMMIT, token=format_token("00" * 32, "S" * 43))
    assert "S" * 43 not in str(caught.value)


def test_a_bad_name_is_its_own_kind_of_error() -> None:
    """The field tells the listener to say `invalid hostname`."""
    with pytest.raises(InvalidNameError) as caught:
        decode(hostname="../x")
    assert caught.value.field == "hostname"


def test_refusals_have_the_pairing_form() -> None:
    """Too large is the protocol's word with status 200, all else keeps its status."""
    too_large, other = refuse(413, "detail"), refuse(400, "detail")
    assert (too_large.status, json.loads(bytes(too_large.body))["reason"]) == (200, TOO_LARGE)  # type: ignore[arg-type]
    assert (other.status, json.loads(bytes(other.body))["reason"]) == (400, INVALID_REQUEST)  # type: ignore[arg-type]


@settings(max_examples=300, deadline=None, database=None)
@given(
    st.dictionaries(
        st.sampled_from(
            ["hostname", "csr", "nonce", "ip", "port", "lookup_by", "protocol", "commit", "token"]
        ),
        st.one_of(
            st.none(),
            st.booleans(),
            st.integers(),
            st.floats(),
            st.text(max_size=60),
            st.lists(st.integers()),
        ),
    )
)
def test_any_json_object_is_a_wish_or_a_refusal(changes: dict[str, object]) -> None:
    """Fields of any type and content never raise anything but InvalidInputError."""
    try:
        found = decode_wish(json.dumps(PLAIN | changes).encode(), "192.0.2.1", CA)
    except InvalidInputError:
        return
    assert found.hostname
    assert 1 <= found.port <= 65535


@settings(max_examples=200, deadline=None, database=None)
@given(st.binary(max_size=300))
def test_any_bytes_are_a_wish_or_a_refusal(body: bytes) -> None:
    """Bodies that are no JSON object are refused."""
    with pytest.raises(InvalidInputError):
        decode_wish(body, "192.0.2.1", CA)
