"""Names that become paths, and times as text."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctrl_exec.common import clock, names
from ctrl_exec.common.errors import InvalidNameError, MessageError
from ctrl_exec.common.second import Second, this_second
from tests.support.polling import eventually


@pytest.mark.parametrize("name", ["web-01", "WEB-01", "a", "a.b_c-d", "1", "x" * 253])
def test_an_agent_name_is_folded(name: str) -> None:
    assert names.check_agent_name(name) == name.lower()


@pytest.mark.parametrize(
    "name", ["", ".", "..", "-a", "a/b", "../x", "a\n", "ä", "\u212a", "x" * 254, None, 1, "a b", "a\0", "_x"]
)
def test_a_bad_agent_name_is_refused_by_name(name: object) -> None:
    with pytest.raises(InvalidNameError) as caught:
        names.check_agent_name(name)
    assert caught.value.field == "host"
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["", "a.b", "a/b", "a" * 65, "a\n", "é", None, "../a"])
def test_a_bad_script_name_is_refused(name: object) -> None:
    with pytest.raises(InvalidNameError):
        names.check_script(name)


@pytest.mark.parametrize("name", ["", "ABCDEF12", "1234567", "g" * 16, "0" * 33, "../../x"])
def test_a_bad_reqid_is_refused(name: object) -> None:
    with pytest.raises(InvalidNameError):
        names.check_reqid(name)


def test_a_new_reqid_has_sixteen_hex_digits() -> None:
    made = {names.new_reqid() for _ in range(100)}
    assert len(made) == 100
    assert all(len(each) == 16 and names.check_reqid(each) for each in made)


@pytest.mark.parametrize("name", ["", "-x", "a b", "a/b", "é"])
def test_a_bad_dispatcher_id_is_refused(name: str) -> None:
    with pytest.raises(InvalidNameError):
        names.check_dispatcher_id(name)
    assert names.check_dispatcher_id("Main.1") == "Main.1"


@given(st.text())
def test_no_accepted_name_leaves_its_directory(name: str) -> None:
    for check in (names.check_agent_name, names.check_script, names.check_reqid, names.check_dispatcher_id):
        try:
            accepted = check(name)
        except InvalidNameError:
            continue
        assert accepted.isascii()
        assert not set(accepted) & set("/\0\n ")
        assert not accepted.startswith(".")


@given(st.datetimes(min_value=datetime(1970, 1, 1), max_value=datetime(2200, 1, 1)))
def test_times_round_trip(moment: datetime) -> None:
    aware = moment.replace(tzinfo=UTC, microsecond=0)
    assert clock.parse_iso_z(clock.iso_z(aware)) == aware
    assert clock.parse_openssl_time(clock.openssl_time(aware)) == aware


def test_times_look_as_documented() -> None:
    moment = datetime(2026, 1, 15, 14, 0, tzinfo=timezone(timedelta(hours=2)))
    assert clock.iso_z(moment) == "2026-01-15T12:00:00Z"
    assert clock.openssl_time(moment) == "Jan 15 12:00:00 2026 GMT"
    assert clock.openssl_time(moment.replace(day=5)) == "Jan  5 12:00:00 2026 GMT"
    assert Second(784111777).http == "Sun, 06 Nov 1994 08:49:37 GMT"
    assert Second(784111777).iso == "1994-11-06T08:49:37Z"
    assert clock.utc_now().tzinfo is UTC
    assert abs(clock.epoch_now() - clock.utc_now().timestamp()) < 5
    assert clock.monotonic() <= clock.monotonic()


def test_a_second_is_over_when_the_next_one_begins():
    first = this_second()
    assert abs(first.epoch_s - time.time()) < 60
    assert eventually(lambda: this_second().epoch_s > first.epoch_s)
    assert this_second().http != first.http


@pytest.mark.parametrize(
    "text", ["", "yesterday", "Foo 15 12:00:00 2026 GMT", "Jan 15 12:00:00 2026 CET", "Jan 99 1:1:1 2 GMT"]
)
def test_a_bad_time_is_refused(text: str) -> None:
    with pytest.raises(MessageError):
        clock.parse_openssl_time(text)
    with pytest.raises(MessageError):
        clock.parse_iso_z(text)
