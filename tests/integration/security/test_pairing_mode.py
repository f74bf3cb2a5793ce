"""What the pairing listener, the one process of the signer's on the network, is given by it."""

from __future__ import annotations

import os
from pathlib import Path

from tests.support import processes
from tests.support.pairing import Instance
from tests.support.polling import eventually
from tests.support.processes import Running, children_of


def test_the_listener_gets_none_of_the_admins_secrets(tmp_path: Path) -> None:
    """Neither in its environment nor as a descriptor; the signer's lock and log stay the signer's."""
    instance = Instance(tmp_path)
    secrets = {"ENVEXEC_TOKEN": "s3cret-token", "AWS_SECRET_ACCESS_KEY": "s3cret-key"}
    with Running(
        "ctrl-exec", "--config", instance.conf, "pairing-mode", log_path=tmp_path / "log", env=secrets
    ) as mode:
        mode.wait_for("listens on")
        (listener,) = eventually(lambda: children_of(mode.pid), what="the listener runs") or ()
        told = Path(f"/proc/{listener}/environ").read_bytes()
        assert b"s3cret" not in told
        assert b"PATH=" in told
        held = [os.readlink(each) for each in Path(f"/proc/{listener}/fd").iterdir()]
        assert not [each for each in held if "signer" in each or "ca.key" in each]
        assert instance.json("list-requests") == {"ok": True, "requests": []}
    assert processes.run("ctrl-exec", "--config", instance.conf, "pairing-mode", "stop").returncode == 0
