"""The text of a run's record on disk: JSON, a key of its head a line, then a result a line.

Owns that form: heads are read without the results that follow (`record_heads`), and outputs that are on
disk elsewhere are put in piece by piece. Must not know where the text goes.
"""

from __future__ import annotations

from ctrl_exec.common.json_text import encoder
from ctrl_exec.common.value import replace
from ctrl_exec.services.records import encode_record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from ctrl_exec.common.messages import HostResult
    from ctrl_exec.services.records import RunRecord

    Outputs = Callable[[HostResult], tuple[tuple[str, Iterable[str]], ...]]

_PIECE_BYTES = 1 << 18
# without indentation: only so it is the encoder in C that works
encoded = encoder(ensure_ascii=False)


def record_text(record: RunRecord, outputs: Outputs | None = None) -> Iterator[bytes]:
    """The text in pieces; hosts of which nothing is known are left out of the results.

    `outputs` gives the texts of each stream of a result that stand before what it holds itself, in their
    order.
    """
    return _gathered(_texts(record, outputs))


def _texts(record: RunRecord, outputs: Outputs | None) -> Iterator[str]:
    head = encode_record(replace(record, results=()))
    head |= {"pending": list(record.pending), "counts": record.counts}
    del head["results"]
    yield "{\n " + ",\n ".join(f'"{key}": {encoded(each)}' for key, each in head.items())
    yield ',\n "results": ['
    comma = ""
    for result in record.results:
        if result.state == "pending":
            continue
        yield f"{comma}\n  "
        comma = ","
        yield from (encoded(result.as_json()),) if outputs is None else _result(result, outputs(result))
    yield "\n ]\n}\n"


def _result(result: HostResult, outputs: tuple[tuple[str, Iterable[str]], ...]) -> Iterator[str]:
    shown = result.as_json()
    own = {stream: shown.pop(stream) for stream, _ in outputs}
    yield encoded(shown).removesuffix("}")
    for stream, texts in outputs:
        yield f', "{stream}": "'
        for text in texts:
            yield _inside(text)
        yield _inside(own[stream]) + '"'
    yield "}"


def _inside(text: str) -> str:
    """The text as it stands within a JSON string."""
    return encoded(text)[1:-1]


def _gathered(texts: Iterable[str]) -> Iterator[bytes]:
    """The same in few large pieces of UTF-8."""
    pieces: list[str] = []
    chars = 0
    for text in texts:
        pieces.append(text)
        chars += len(text)
        if chars >= _PIECE_BYTES:
            yield "".join(pieces).encode("utf-8", "surrogatepass")
            pieces.clear()
            chars = 0
    yield "".join(pieces).encode("utf-8", "surrogatepass")
