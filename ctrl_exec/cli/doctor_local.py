"""The doctor's look at local commands of tasks: who executes them, and what that user could read.

It changes nothing and never raises.
"""

from __future__ import annotations

import os

from ctrl_exec.cli.findings import Account, Finding, account_named
from ctrl_exec.common.errors import ConfigError, ServiceError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from ctrl_exec.config import Config

CHECK = "local commands"
UNIT_REMEDY = "set local_user to that name, or User= of ctrl-exec-local.service (`systemctl edit`)"


def check_local(config: Config, account: Account) -> Iterator[Finding]:
    """Look whether local commands run, as whom, and whether keys and state are closed to them."""
    try:
        local = account_named(config.local_user, "") if config.local_user else account
    except ConfigError as error:
        remedy = "create it (`make install-system` does), or name another with local_user"
        yield Finding("problem", CHECK, f"local_user: {error.detail}", remedy)
        return
    if not config.local_socket:
        yield from check_in_place(local, account)
        return
    yield from check_service(config, local)
    if local.uid in (0, account.uid):
        detail = f"local commands run as {local.name}, and may do all that ctrl-exec may"
        yield Finding("warning", CHECK, detail, "set local_user to a user of their own")
        return
    for path in (config.etc_dir, config.state_dir):
        yield from check_closed(path, local)


def check_in_place(local: Account, account: Account) -> Iterator[Finding]:
    """Look who executes them where there is no service."""
    if local.uid != account.uid:
        detail = (
            f"local commands are refused: local_user is {local.name}, the scheduler runs as {account.name}"
        )
        yield Finding("problem", CHECK, detail, "set local_socket, where ctrl-exec-local listens")
    else:
        yield Finding("ok", CHECK, f"executed by the scheduler in place, as {account.name}")


def check_service(config: Config, local: Account) -> Iterator[Finding]:
    """Look whether the service answers, and runs as the user that is configured."""
    from ctrl_exec.local.client import REMEDY, LocalService

    try:
        name = LocalService(config.local_socket, config.local_user).about()
    except ServiceError as error:
        if os.path.exists(config.local_socket) and not os.access(config.local_socket, os.W_OK):
            yield Finding("ok", CHECK, f"{config.local_socket} is for the scheduler alone")
            return
        detail = str(error).removesuffix(f": {REMEDY}")
        yield Finding("warning", CHECK, f"{detail}; local commands fail", REMEDY)
        return
    if name != local.name:
        detail = f"local commands are refused: local_user is {local.name}, ctrl-exec-local runs as {name}"
        yield Finding("problem", CHECK, detail, UNIT_REMEDY)
    else:
        yield Finding("ok", CHECK, f"executed by ctrl-exec-local, as {name}")


def check_closed(path: str, local: Account) -> Iterator[Finding]:
    """Look whether the user could look into a directory, were it not for the unit that hides it."""
    if not os.path.isdir(path):
        return
    ways = [word for wanted, word in ((4, "read"), (1, "enter")) if not local.obstacle(path, wanted)]
    if ways:
        remedy = f"chmod o-rwx {path}; {local.name} must not be in its group"
        yield Finding("warning", CHECK, f"local_user {local.name} may {' and '.join(ways)} {path}", remedy)
