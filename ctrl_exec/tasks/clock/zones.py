"""Time zones by name: those of the IANA database that this machine has.

Owns which names are taken. Must not know what they are for.
"""

from __future__ import annotations

import re
from contextlib import suppress
from functools import lru_cache

from ctrl_exec.common.errors import InvalidInputError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import tzinfo

WIRE_FIELD = "cronTimezone"
_NAME = re.compile(r"(?!(?:right|posix)/)[A-Za-z0-9_+-]{1,40}(?:/[A-Za-z0-9_+-]{1,40}){0,2}", re.ASCII)


@lru_cache(maxsize=1024)
def zone_named(name: str) -> tzinfo:
    """The zone of a name such as `Europe/Berlin` or `UTC`.

    Raises: InvalidInputError.
    """
    from zoneinfo import ZoneInfo

    if _NAME.fullmatch(name):
        with suppress(OSError, ValueError, KeyError):  # a folder, a file that is none, nothing at all
            return ZoneInfo(name)
    raise InvalidInputError(
        f"{name[:80]!r} is no time zone of this machine, expected a name such as Europe/Berlin or UTC",
        field=WIRE_FIELD,
    )


def local_zone(environment: Mapping[str, str]) -> tzinfo:
    """The zone meant where none is named: that of TZ, else the machine's, else UTC."""
    from datetime import UTC
    from zoneinfo import ZoneInfo

    name = environment.get("TZ", "").removeprefix(":")
    with suppress(OSError, ValueError, KeyError):
        if name:
            return ZoneInfo(name)
        with open("/etc/localtime", "rb") as stream:
            return ZoneInfo.from_file(stream, key="localtime")
    return UTC
