"""Secrets out of what is shown: replaced in a stream of bytes, also where two chunks share one.

Owns the search. Knows not where secrets come from nor where the stream goes.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import re
    from collections.abc import Iterable, Iterator

MASK = b"********"
SHORTEST = 3
"""Secrets of fewer bytes are not looked for: masking every `1` would hide the output and tell the secret."""


class Masker:
    """Replaces secrets in a stream; what may be the beginning of one waits for the next chunk.

    A secret of several lines is also looked for line by line, for programs that print it so, and as it
    stands in JSON, for those that print what they were given.
    """

    def __init__(self, secrets: Iterable[str]) -> None:
        found = {form for secret in secrets for form in _forms(secret)}
        # the longest first: a secret may begin with another one
        self._secrets = sorted((each for each in found if len(each) >= SHORTEST), key=len, reverse=True)
        self._firsts = {each[0] for each in self._secrets}
        self._search = _pattern(self._secrets) if self._secrets else None
        self._held = b""

    def feed(self, chunk: bytes) -> bytes:
        """What may be shown now."""
        if self._search is None:
            return chunk
        whole = self._held + chunk
        keep_from = len(whole) - self._open_bytes(whole)
        shown, at = [], 0
        for match in self._search.finditer(whole):
            # one that ends where a longer one may still go on is decided with the next chunk
            if match.start() >= keep_from or (match.end() > keep_from and self._may_grow(whole, match)):
                keep_from = min(keep_from, match.start())
                break
            shown += [whole[at : match.start()], MASK]
            at = match.end()
        keep_from = max(keep_from, at)
        shown.append(whole[at:keep_from])
        self._held = whole[keep_from:]
        return b"".join(shown)

    def flush(self) -> bytes:
        """The rest, at the end of the stream."""
        rest, self._held = self._held, b""
        return self._search.sub(MASK, rest) if self._search is not None else rest

    def _open_bytes(self, whole: bytes) -> int:
        """How many bytes at the end are the beginning of a secret that is not yet whole."""
        longest = len(self._secrets[0]) - 1
        for length in range(min(longest, len(whole)), 0, -1):
            if whole[-length] in self._firsts and self._begins_longer(whole[-length:]):
                return length
        return 0

    def _begins_longer(self, end: bytes) -> bool:
        return any(len(secret) > len(end) and secret.startswith(end) for secret in self._secrets)

    def _may_grow(self, whole: bytes, match: re.Match[bytes]) -> bool:
        return self._begins_longer(whole[match.start() :])


def _forms(secret: str) -> Iterator[bytes]:
    """How a program may print it."""
    from json import dumps  # late: who has no secrets needs neither this nor `re`

    for part in (secret, *secret.splitlines()):
        yield part.encode("utf-8", "surrogatepass")
        for is_ascii in (True, False):
            yield dumps(part, ensure_ascii=is_ascii)[1:-1].encode("utf-8", "surrogatepass")


def _pattern(secrets: list[bytes]) -> re.Pattern[bytes]:
    import re

    return re.compile(b"|".join(map(re.escape, secrets)))


def masked(text: str, secrets: Iterable[str]) -> str:
    """A whole text without the secrets in it."""
    masker = Masker(secrets)
    return (masker.feed(text.encode("utf-8", "surrogatepass")) + masker.flush()).decode("utf-8", "replace")
