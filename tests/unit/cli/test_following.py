"""Following a run over breaks: nothing is lost, nothing comes twice, another way is taken in the end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from ctrl_exec.cli import following
from ctrl_exec.cli.daemon import BrokenError, UnsentError
from ctrl_exec.cli.following import Following
from ctrl_exec.cli.progress import Release
from ctrl_exec.common.errors import DeniedError, ServiceError

EVENTS: list[dict[str, Any]] = [
    {"id": 0, "event": "start"},
    {"id": 10, "event": "stdout", "text": "a"},
    {"id": 20, "event": "stdout", "text": "b"},
    {"id": 30, "event": "exit"},
    {"id": 30, "event": "end"},
]


def after(place: int) -> list[dict[str, Any]]:
    return [each for each in EVENTS if each["id"] > place or each["event"] == "end"]


class Breaking:
    """A daemon that breaks off after so many events of each connection."""

    def __init__(self, *counts: int, error: Exception | None = None) -> None:
        self.counts = list(counts)
        self.error = error
        self.asked: list[int] = []

    def __call__(self, place: int) -> Iterator[dict[str, Any]]:
        self.asked.append(place)
        if not self.counts:
            raise UnsentError("no such file")
        yield from after(place)[: self.counts.pop(0)]
        if self.error is not None:
            raise self.error


def refuse(why: str) -> None:
    raise ServiceError(why)


@pytest.fixture
def release() -> Iterator[Release]:
    with Release(130, "") as made:
        yield made


def test_a_broken_stream_is_taken_up_where_it_broke(release: Release) -> None:
    """Also where it ends without the run's end, or says nothing for a while."""
    daemon = Breaking(2, 0, 1, 9, error=BrokenError("reset"))
    found = list(Following(release, daemon, after_here, refuse).events())
    assert found == EVENTS
    assert daemon.asked == [-1, 10, 10, 20]


def after_here(place: int) -> Iterator[dict[str, Any]]:
    return iter(after(place))


def test_a_daemon_that_is_not_there_is_left_at_once(release: Release) -> None:
    """Nothing had come from it: no reason to hope."""
    left: list[str] = []
    assert list(Following(release, Breaking(), after_here, left.append).events(10)) == EVENTS[2:]
    assert left == ["no such file"]
    with pytest.raises(ServiceError, match="no such file"):
        list(Following(release, Breaking(), after_here, refuse).events())


def test_a_daemon_that_stays_away_is_left_after_a_while(
    release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This process goes on from the same place."""
    monkeypatch.setattr(following, "COME_BACK_S", 0.2)
    daemon = Breaking(2)
    left: list[str] = []
    assert list(Following(release, daemon, after_here, left.append).events()) == EVENTS
    assert len(daemon.asked) > 2
    assert set(daemon.asked[1:]) == {10}
    assert left == ["no such file"]


def test_a_refusal_ends_it(release: Release) -> None:
    with pytest.raises(DeniedError):
        list(Following(release, Breaking(1, error=DeniedError(1, "denied")), after_here, refuse).events())


def test_who_lets_go_gets_no_more(release: Release) -> None:
    """And nothing is tried again."""
    daemon = Breaking(2)
    found = []
    for event in Following(release, daemon, after_here, refuse).events():
        found.append(event)
        if len(found) == 2:
            release.expire()
    assert found == EVENTS[:2]
    assert daemon.asked == [-1]


def test_idle_words_are_not_shown_and_keep_the_hope_up(release: Release) -> None:
    def over(place: int) -> Iterator[dict[str, Any]]:
        yield {"id": 25, "event": "idle"}
        yield from after(place)

    assert list(Following(release, over, after_here, refuse).events(20)) == EVENTS[3:]
