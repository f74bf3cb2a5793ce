"""What descriptors this process has open, for tests that nothing is left behind."""

from __future__ import annotations

import contextlib
import gc
import os


def open_descriptors() -> dict[int, str]:
    """Number and target of each; what earlier tests left to the garbage collector is closed before."""
    gc.collect()
    found = {}
    for name in os.listdir("/proc/self/fd"):
        # the descriptor that lists the directory is in the list, and closed by now
        with contextlib.suppress(FileNotFoundError):
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}").removesuffix(" (deleted)")
    return found
