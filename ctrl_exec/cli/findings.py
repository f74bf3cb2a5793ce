"""What a check of the installation found, and what to do about it."""

from __future__ import annotations

import os
import stat

from ctrl_exec.common.value import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal

    Level = Literal["ok", "warning", "problem"]


@value
class Finding:
    """One fact about the installation: how bad it is, what was looked at, what to do."""

    level: Level
    check: str
    detail: str
    remedy: str = ""


@value
class Account:
    """Who the service runs as: the user and group to be looked at with, and all of its groups."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...] = ()

    def may(self, about: os.stat_result, wanted: int) -> bool:
        """Whether the mode bits let this account read (4), write (2) or search (1)."""
        if self.uid == 0:
            return True
        if about.st_uid == self.uid:
            return (about.st_mode >> 6) & wanted == wanted
        if about.st_gid in (self.gid, *self.groups):
            return (about.st_mode >> 3) & wanted == wanted
        return about.st_mode & wanted == wanted

    def obstacle(self, path: str, wanted: int) -> str:
        """Why this account cannot reach the path with these rights; empty when it can."""
        parts = path.rstrip("/").split("/")
        for at in range(1, len(parts)):
            parent = "/".join(parts[:at]) or "/"
            try:
                if not self.may(os.stat(parent), 1):
                    return f"{self.name} may not enter {parent}"
            except OSError as error:
                return f"{parent}: {error.strerror}"
        try:
            about = os.stat(path)
        except OSError as error:
            return f"{path}: {error.strerror}"
        if self.may(about, wanted):
            return ""
        words = " and ".join(word for bit, word in ((4, "read"), (2, "write"), (1, "enter")) if wanted & bit)
        return f"{self.name} may not {words} {path} (mode {stat.S_IMODE(about.st_mode):04o})"


def account_named(user: str, group: str) -> Account:
    """The account of the service user, or of this process where none is set.

    Raises:
        ConfigError: there is no such user or group.
    """
    import pwd

    from ctrl_exec.common.process import account_of

    if not user:
        try:
            name = pwd.getpwuid(os.geteuid()).pw_name
        except KeyError:
            name = str(os.geteuid())
        return Account(name, os.geteuid(), os.getegid(), tuple(os.getgroups()))
    uid, gid = account_of(user, group)
    return Account(user, uid, gid, tuple(os.getgrouplist(user, gid)))
