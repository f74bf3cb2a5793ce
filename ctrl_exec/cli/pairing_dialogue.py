"""The questions of pairing mode on a terminal: one request at a time, an answer a line.

Owns what is asked and how an answer reads. Decides nothing itself and never blocks: the signer goes
on while a person thinks.
"""

from __future__ import annotations

import os
import select

from ctrl_exec.cli.output import printable
from ctrl_exec.cli.pairing import notes_of
from ctrl_exec.common.errors import CtrlExecError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ctrl_exec.cli.context import Context
    from ctrl_exec.operations.pairing import ShownRequest, Signer

LINE_LIMIT_BYTES = 4096
QUESTION = "approve? [y]es, [n]o, [l]ater; add --legacy or --replace where noted: "


class Dialogue:
    """Asks about the oldest request nobody has answered for yet."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._input = context.stdin.fileno()
        self._asked: ShownRequest | None = None
        self._later: set[str] = set()
        self._line = b""

    def turn(self, signer: Signer) -> None:
        """Take an answer if there is one, and ask the next question if there is one."""
        answer = self._read()
        waiting = signer.requests()
        if self._asked is not None and self._asked.request.id not in {each.request.id for each in waiting}:
            self._say("\nthat request was decided elsewhere, or its agent went away")
            self._asked = None
        if self._asked is not None and answer is not None:
            self._decide(signer, self._asked, answer.split())
            waiting = signer.requests()  # what was just decided must not be asked about again
        if self._asked is None:
            open_ones = [
                each for each in waiting if each.request.id not in self._later and not each.request.proof
            ]
            if open_ones:
                self._ask(open_ones[0])

    def _ask(self, shown: ShownRequest) -> None:
        self._asked = shown
        request = shown.request
        self._say(f"\n{request.hostname} ({request.ip}, port {request.port}) asks to be paired")
        self._say(f"  code {shown.code}   id {request.id}")
        for note in notes_of(shown):
            self._say(f"  ! {note}")
        self._context.output.stderr.write(QUESTION)
        self._context.output.stderr.flush()

    def _decide(self, signer: Signer, shown: ShownRequest, words: list[str]) -> None:
        from ctrl_exec.operations.pairing import Approval

        answer = words[0].lower() if words else ""
        self._asked = None
        try:
            if answer in ("y", "yes"):
                approval = Approval(
                    csr_digest=shown.csr_digest,
                    code=shown.code,
                    is_legacy="--legacy" in words,
                    is_replacing="--replace" in words,
                    by="terminal",
                )
                record = signer.approve(shown.request.id, approval)
                self._say(f"approved {record.hostname} until {record.expiry}")
            elif answer in ("n", "no"):
                signer.deny(shown.request.id, by="terminal")
                self._say(f"denied {shown.request.hostname}")
            elif answer in ("l", "later"):
                self._later.add(shown.request.id)
                self._say("later; list-requests shows it, approve or deny decides")
            else:
                self._say("please answer y, n or l")
        except CtrlExecError as error:
            self._say(f"not done: {error}")

    def _say(self, text: str) -> None:
        self._context.output.stderr.write(printable(text, keep="\n") + "\n")
        self._context.output.stderr.flush()

    def _read(self) -> str | None:
        """A whole line from the terminal, None while there is none."""
        if not select.select([self._input], [], [], 0)[0]:
            return None
        self._line += os.read(self._input, LINE_LIMIT_BYTES)
        if b"\n" not in self._line and len(self._line) < LINE_LIMIT_BYTES:
            return None
        line, _, self._line = self._line.partition(b"\n")
        return line.decode("utf-8", "replace")
