"""Our ends of a running script's three standard streams, none of which ever blocks.

Owns the pipes. What is read goes to the outputs that it was given; nothing here knows processes.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from ctrl_exec_agent.kept_output import KeptOutput

_CHUNK_BYTES = 1 << 16
_LEFT_IN_PIPE_BYTES = 1 << 20  # the largest pipe an unprivileged script can make


class Pipes:
    """Stdin (0), stdout (1) and stderr (2) of a script: `theirs` and `ours`, by number."""

    def __init__(self, stdin: bytes, outputs: Mapping[int, KeptOutput]) -> None:
        self._unsent = memoryview(stdin)
        self._outputs = outputs
        self.ours: dict[int, int] = {}
        self.theirs: dict[int, int] = {}

    def open(self) -> None:
        """Make the pipes. Raises: OSError."""
        for stream in (0, 1, 2):
            reading, writing = os.pipe2(os.O_CLOEXEC)
            ends = (reading, writing) if stream == 0 else (writing, reading)
            self.theirs[stream], self.ours[stream] = ends
            os.set_blocking(self.ours[stream], False)

    def move(self, stream: int) -> bool:
        """Write or read one chunk; False if nothing moved, for now or for good."""
        return self._feed() if stream == 0 else self._read(stream)

    def _feed(self) -> bool:
        try:
            written = os.write(self.ours[0], self._unsent[:_CHUNK_BYTES])
        except BlockingIOError:
            return False
        except OSError:  # it closed its stdin unread, which is its right
            self.shut(0)
            return False
        self._unsent = self._unsent[written:]
        if not self._unsent:
            self.shut(0)
        return True

    def _read(self, stream: int) -> bool:
        try:
            chunk = os.read(self.ours[stream], _CHUNK_BYTES)
        except BlockingIOError:
            return False
        if not chunk:
            self.shut(stream)
            return False
        self._outputs[stream].append(chunk)
        return True

    def drain(self) -> None:
        """Take what the ended script left in its pipes; not what an escaped descendant goes on writing."""
        for stream in (1, 2):
            for _ in range(_LEFT_IN_PIPE_BYTES // _CHUNK_BYTES):
                if stream not in self.ours or not self._read(stream):
                    break

    def shut(self, stream: int) -> None:
        """Close our end of one."""
        os.close(self.ours.pop(stream))

    def close_theirs(self) -> None:
        """Close what the script has got."""
        while self.theirs:
            os.close(self.theirs.popitem()[1])

    def close(self) -> None:
        """Close what is still open."""
        self.close_theirs()
        while self.ours:
            os.close(self.ours.popitem()[1])
