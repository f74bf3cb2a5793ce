"""The standard library's `ForkingMixIn` without the `threading` module it drags along.

`socketserver` imports `threading` for servers of another kind, and `threading` has every forked child
set up locks, sets and thread objects anew: 126 pages copied, twice as many as for the fork itself.
Owns that import and nothing else. Whoever needs threads imports `threading` as ever.
"""

from __future__ import annotations

import sys
from types import ModuleType

__all__ = ["BaseServer", "ForkingMixIn"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from socketserver import BaseServer, ForkingMixIn
    from typing import Any


class _LateThreading(ModuleType):
    """To `socketserver` what `threading` is, loaded when it is first used."""

    def __getattr__(self, name: str) -> Any:
        from importlib import import_module

        return getattr(import_module("threading"), name)


def _socketserver() -> ModuleType:
    is_stand_in = "threading" not in sys.modules
    if is_stand_in:
        sys.modules["threading"] = _LateThreading("threading")
    try:
        import socketserver
    finally:
        if is_stand_in:
            del sys.modules["threading"]
    return socketserver


if not TYPE_CHECKING:
    ForkingMixIn = _socketserver().ForkingMixIn
    BaseServer = _socketserver().BaseServer
