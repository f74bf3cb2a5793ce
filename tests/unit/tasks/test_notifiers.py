"""Secrets of notifiers stay with the server they were set for."""

from __future__ import annotations

from pathlib import Path

import pytest

from ctrl_exec.common.errors import InvalidFieldsError
from ctrl_exec.common.value import replace
from ctrl_exec.tasks.models import Notifier
from ctrl_exec.tasks.notification.notifiers import load_notifier, save_notifier
from ctrl_exec.tasks.sealing import Sealer
from ctrl_exec.tasks.store import Store
from tests.support.flows import PROJECT, Flows


@pytest.mark.parametrize(
    "url", ["https://evil.example/x", "http://ntfy.example/x", "https://ntfy.example:8443/x"]
)
def test_a_token_is_not_given_to_another_server(store: Store, tmp_path: Path, url: str) -> None:
    """Whoever may edit the address does not learn it so; with a token of their own they may."""
    flows, sealer = Flows(store, tmp_path), Sealer(str(tmp_path / "key"))
    manager = flows.identity("manager")
    draft = Notifier("", PROJECT, "Phone", "NTFY", {"url": "https://ntfy.example/x"})
    saved, _ = save_notifier(store, manager, sealer, draft, "tk_old")
    moved = replace(saved, settings={"url": url})
    with pytest.raises(InvalidFieldsError) as refused:
        save_notifier(store, manager, sealer, moved, None)
    assert list(refused.value.fields) == ["secret"]
    assert load_notifier(store, sealer, saved.notifier_id) == (saved, "tk_old")
    topic, _ = save_notifier(
        store, manager, sealer, replace(saved, settings={"url": "https://ntfy.example/y"}), None
    )
    assert load_notifier(store, sealer, saved.notifier_id) == (topic, "tk_old")
    moved, _ = save_notifier(store, manager, sealer, moved, "tk_new")
    assert load_notifier(store, sealer, saved.notifier_id) == (moved, "tk_new")


def test_an_address_without_a_secret_may_change(store: Store, tmp_path: Path) -> None:
    """There is nothing to give away."""
    flows, sealer = Flows(store, tmp_path), Sealer(str(tmp_path / "key"))
    draft = Notifier("", PROJECT, "Phone", "NTFY", {"url": "https://ntfy.example/x"})
    saved, _ = save_notifier(store, flows.identity("manager"), sealer, draft, None)
    moved = replace(saved, settings={"url": "https://other.example/x"})
    moved, _ = save_notifier(store, flows.identity("manager"), sealer, moved, None)
    assert load_notifier(store, sealer, saved.notifier_id) == (moved, "")
