"""`ctrl-exec secrets`: the key that stored secrets are encrypted with."""

from __future__ import annotations

import os

from ctrl_exec.cli.command import Argument, Command
from ctrl_exec.common.errors import ServiceError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ctrl_exec.cli.arguments import Arguments
    from ctrl_exec.cli.context import Context
    from ctrl_exec.config import Config


def execute_secrets(context: Context, arguments: Arguments) -> int:
    """Make the key, or put another one in its place."""
    from ctrl_exec.tasks import sealing

    config = context.config
    path, owner = config.secrets_key_path, owner_of(config)
    if arguments.words[0] == "init":
        key_id = sealing.make_key(path, owner=owner).hex()
        document: dict[str, object] = {"ok": True, "keyId": key_id, "path": path}
        context.output.answer(document, lambda: context.output.line(f"{path}: key {key_id}"))
        return 0
    sealing.make_key(path, owner=owner)
    key_id = sealing.add_key(path, owner=owner).hex()
    # the old keys go only once nothing is left that they are needed for
    reseal(config)
    sealing.drop_old_keys(path, owner=owner)
    words = f"{path}: everything is sealed with key {key_id}"
    context.output.answer({"ok": True, "keyId": key_id, "path": path}, lambda: context.output.line(words))
    return 0


def owner_of(config: Config) -> tuple[int, int] | None:
    """Whose the key is when root makes it: the service user's."""
    if os.geteuid() != 0 or not config.service_user:
        return None
    from ctrl_exec.common.process import account_of

    return account_of(config.service_user, config.service_group)


def reseal(config: Config) -> None:
    """Seal everything with the newest key, as the service user, whose the database is.

    Raises:
        ServiceError: it did not come to its end; all keys are still there.
    """
    from ctrl_exec.common.process import drop_privileges, fork_child, wait_status

    def work() -> int:
        from ctrl_exec.tasks.opening import open_store
        from ctrl_exec.tasks.project_secrets import reseal_all
        from ctrl_exec.tasks.sealing import Sealer

        drop_privileges(config.service_user, config.service_group)
        with open_store(config) as store:
            reseal_all(store, Sealer(config.secrets_key_path))
        return 0

    if wait_status(fork_child(work)) != (0, 0):
        raise ServiceError("sealing everything anew failed; the old key is still there: try again")


COMMANDS = {
    "secrets": Command(
        "make or change the key of stored secrets",
        execute_secrets,
        arguments=(
            Argument(
                "ACTION", "init: make one if there is none; rotate: a new one", choices=("init", "rotate")
            ),
        ),
        description=(
            "The key is <etc_dir>/secrets.key, 0600, of the service user. Keep a copy apart from those of"
            " the database: without it its secrets are lost, with it they are open."
        ),
        examples=("ctrl-exec secrets init", "ctrl-exec secrets rotate"),
        stays_root=True,
    ),
}
