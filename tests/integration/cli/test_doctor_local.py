"""`ctrl-exec doctor` on local commands of tasks: who executes them, and what that user could read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ctrl_exec.cli.doctor import examine
from ctrl_exec.config import load_config
from tests.integration.cli.instance import Instance
from tests.support.local_service import OURS, USER, Works, open_home

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


@pytest.fixture
def instance() -> Iterator[Instance]:
    """A dispatcher whose directories every user could reach, were it not for their modes."""
    with open_home() as home:
        made = Instance(home)
        for name in ("etc", "state"):
            (home / name).chmod(0o750)
        yield made
        made.close()


def about(instance: Instance) -> list[tuple[str, str, str]]:
    """Level, detail and remedy of what was found."""
    found = examine(load_config(str(instance.conf)))
    return [(each.level, each.detail, each.remedy) for each in found if each.check == "local commands"]


def test_a_private_instance_executes_them_in_place(instance: Instance) -> None:
    """Unless they were to run as another user: then they are refused."""
    instance.configure()
    assert about(instance) == [("ok", f"executed by the scheduler in place, as {OURS}", "")]
    instance.configure(local_user="daemon")
    [(level, detail, remedy)] = about(instance)
    assert (level, "are refused: local_user is daemon" in detail) == ("problem", True)
    assert "local_socket" in remedy
    instance.configure(local_user="no-such-user-anywhere")
    [(level, detail, remedy)] = about(instance)
    assert (level, "no-such-user-anywhere" in detail, "create it" in remedy) == ("problem", True, True)


def test_a_service_that_is_missing_or_runs_as_somebody_else(instance: Instance, tmp_path: Path) -> None:
    """Each has its remedy; with the right one and closed directories all is well."""
    service = Works(instance.home)
    instance.configure(local_socket=service.socket, local_user=USER)
    (level, detail, remedy), *_ = about(instance)
    assert (level, str(service.socket) in detail) == ("warning", True)
    assert "systemctl enable --now ctrl-exec-local.socket" in remedy
    with service.start():
        assert about(instance)[0] == ("ok", f"executed by ctrl-exec-local, as {USER}", "")
        instance.configure(local_user="daemon")
        assert about(instance)[0][:2] == (
            "problem", f"local commands are refused: local_user is daemon, ctrl-exec-local runs as {USER}",
        )  # fmt: skip


@needs_root
def test_directories_that_local_user_may_enter_are_named(instance: Instance) -> None:
    """And a user who may do everything anyway."""
    service = Works(instance.home)
    instance.configure(local_socket=service.socket, local_user=USER)
    with service.start():
        assert [level for level, _, _ in about(instance)] == ["ok"]
        (instance.home / "etc").chmod(0o755)
        (instance.home / "state").chmod(0o1771)
        _, first, second = about(instance)
        etc, state = instance.home / "etc", instance.home / "state"
        assert first == (
            "warning", f"local_user {USER} may read and enter {etc}",
            f"chmod o-rwx {etc}; {USER} must not be in its group",
        )  # fmt: skip
        assert second[1] == f"local_user {USER} may enter {state}"
        instance.configure(local_user=OURS)
        assert any("may do all that ctrl-exec may" in detail for _, detail, _ in about(instance))
