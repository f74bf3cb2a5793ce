"""Whose the files are that signing commands write: root's, shared with the service's group, or its own.

Owns the one answer to "chown to whom"; private instances and commands of other users chown nothing.
"""

from __future__ import annotations

import os

from ctrl_exec.common.process import account_of
from ctrl_exec.common.value import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ctrl_exec.config import Config


@value
class Owners:
    """(uid, gid) for the two kinds of state files; None where files stay with whoever writes them.

    `service`: the service user's own. `trusted`: root's, which the service may read.
    """

    service: tuple[int, int] | None = None
    trusted: tuple[int, int] | None = None


def owners_of(config: Config) -> Owners:
    """The owners for this process. Raises: ConfigError if the service user or group does not exist."""
    if os.geteuid() != 0 or not config.service_user:
        return Owners()
    uid, gid = account_of(config.service_user, config.service_group)
    return Owners((uid, gid), (0, gid))
