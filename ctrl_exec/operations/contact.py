"""What agents said of themselves when they were last heard, kept beside the registry.

Owns what is noted and how often. Nothing noted here decides trust.
"""

from __future__ import annotations

from ctrl_exec.common.clock import parse_iso_z, utc_now
from ctrl_exec.common.errors import MessageError, StorageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ctrl_exec.dispatcher import Dispatcher

NO_FEATURES = "none"  # of an agent that names none: an older peer
_FRESH_S = 30  # a note this young that says the same is not written again: a monitor pings each second


class Contacts:
    """Notes the contacts of one operation; a registry that can't be written is said once."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._is_writable = True

    def note(self, name: str, **live: Any) -> None:
        """The agent answered, and said this of itself; empty values are no news."""
        said = {key: each for key, each in live.items() if each}
        if not self._is_writable or self._is_known(name, said):
            return
        try:
            self._dispatcher.registry.note_contact(name, **said)
        except StorageError as error:
            self._is_writable = False
            self._dispatcher.log.warning("ping", error=f"contacts cannot be noted: {error}")

    def note_streaming(self, name: str, *, can: bool) -> None:
        """The agent's answer showed whether it streams; what is noted of it is put right."""
        noted = self._dispatcher.registry.contact(name).get("features")
        features = [each for each in noted if each != NO_FEATURES] if isinstance(noted, list) else []
        if ("stream" in features) == can if noted else can:
            return
        others = [each for each in features if each != "stream"]
        self.note(name, features=[*others, "stream"] if can else others or [NO_FEATURES])

    def _is_known(self, name: str, said: dict[str, Any]) -> bool:
        known = self._dispatcher.registry.contact(name)
        try:
            age_s = (utc_now() - parse_iso_z(known.get("at", ""))).total_seconds()
        except MessageError:
            return False
        return 0 <= age_s < _FRESH_S and known | said == known
