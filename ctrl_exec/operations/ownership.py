"""Whose the files are that signing commands write: root's, shared with the service's group, or its own.

Owns the one answer to "chown to whom"; private instances and commands of other users chown nothing.
"""

from __future__ import annotations

import os
import stat

from ctrl_exec.common import files
from ctrl_exec.common.errors import StorageError
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


def private_directory(path: str) -> str:
    """The directory, made if missing, that nobody but this user may enter.

    Raises: StorageError if it can't be made, or is somebody else's or open to others: what a signer
    keeps there would be worth nothing.
    """
    files.make_dirs(path, 0o700)
    try:
        about = os.lstat(path)
    except OSError as error:
        raise StorageError(error.strerror or str(error), path=path) from error
    if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.geteuid() or about.st_mode & 0o077:
        raise StorageError("must be a directory of this user with mode 0700", path=path)
    return path
