"""Speaking with agents: requests of the wire out, results in, one for each agent asked.

Owns how a request looks and how patient we are. Every outcome is a value; an agent that fails, lies
or is not there is its own result and nobody else's. Must not know who asks or why, nor how bytes
travel (`transport`).
"""

from __future__ import annotations

import time

import ctrl_exec
from ctrl_exec.common.messages import RunCommand, encode, encode_run
from ctrl_exec.common.names import check_reqid
from ctrl_exec.common.value import replace, value
from ctrl_exec.services import agent_answers as answers
from ctrl_exec.services.agent_answers import CapabilitiesReport, PingResult, Reply
from ctrl_exec.services.transport import Answer, Call, Part

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ctrl_exec.common.certificate import Certificate
    from ctrl_exec.common.messages import HostResult
    from ctrl_exec.services.pursuit import Listener, Pursuit
    from ctrl_exec.services.records import CancelOutcome
    from ctrl_exec.services.streams import Reading
    from ctrl_exec.services.targets import Target
    from ctrl_exec.services.transport import Interrupt, Transport

__all__ = ["AgentClient", "CapabilitiesReport", "ClientSettings", "PingResult", "Reply"]

_SMALL_ANSWER_BYTES = 1 << 20
_LEAST_STREAM_BYTES = 1 << 30
BROKEN = "the connection broke before the answer came"
_CANCEL_PATIENCE_S = 10.0  # an agent gives a script five seconds before it kills it
_CAPABILITIES_BYTES = 8 << 20  # ten thousand scripts, and some of them with their schema
# a byte of output takes at most six characters of JSON (\\u0000); there are two streams
_CHARS_A_BYTE = 12


@value
class ClientSettings:
    """How patient, and how much of one agent's output is taken.

    `max_output_bytes` is what an agent keeps of each stream where it tells it whole; what it streams is
    bounded by some multiple of `max_run_output_bytes`. `run_deadline_s` bounds a whole run, however alive
    the connection looks. `keeps_connections` asks agents to leave them open.
    """

    read_timeout_s: float = 60.0
    run_deadline_s: float = 86_400.0
    max_output_bytes: int = 10 << 20
    keeps_connections: bool = False
    max_run_output_bytes: int = 256 << 20


@value
class Question:
    """One request, the same for all agents."""

    method: str
    path: str
    document: bytes = b""
    limit_bytes: int = _SMALL_ANSWER_BYTES
    read_timeout_s: float = 60.0
    deadline: float | None = None
    stream_limit_bytes: int = 0
    wants_certificate: bool = False

    def as_bytes(self, *, keeps_connection: bool = False) -> bytes:
        """The whole HTTP request; one object for all hosts, for arguments may be half a megabyte."""
        lines = [
            f"{self.method} {self.path} HTTP/1.1",
            "Host: agent",
            f"User-Agent: ctrl-exec/{ctrl_exec.__version__}",
            "Accept: application/json",
            "Connection: keep-alive" if keeps_connection else "Connection: close",
        ]
        if self.method == "POST":
            lines += ["Content-Type: application/json", f"Content-Length: {len(self.document)}"]
        return "\r\n".join([*lines, "", ""]).encode("ascii") + self.document


class AgentClient:
    """Asks agents over a transport.

    `revoked` gives the fingerprints of revoked keys, with which nobody is spoken, `registered` those
    of all agents: none of them can answer for an agent whose key is not yet recorded. `learn` is told
    the certificate such an agent has answered with.
    """

    def __init__(
        self,
        transport: Transport,
        settings: ClientSettings,
        *,
        revoked: Callable[[], frozenset[str]] = frozenset,
        registered: Callable[[], frozenset[str]] = frozenset,
        learn: Callable[[str, Certificate], object] | None = None,
    ) -> None:
        self._transport = transport
        self._settings = settings
        self._revoked = revoked
        self._registered = registered
        self._learn = learn

    def run(
        self,
        targets: Sequence[Target],
        command: RunCommand,
        *,
        read_timeout_s: float | None = None,
        pursuit: Pursuit | None = None,
        interrupt: Interrupt | None = None,
    ) -> Iterator[HostResult]:
        """Run the command on each; results as they come, fewer only when interrupted.

        After a read timeout the state is `running`, after a broken connection `lost`: the script may
        be running all the same, so the agent is to be asked (`result`). `accepted` answers `is_async`.

        With a `pursuit` output is told to its listener as it comes, and a host whose connection broke is
        given to the pursuit; its result here is `running`, with an error that begins with `BROKEN`.
        """
        if answers.needed_features(command):
            able: list[Target] = []
            yield from self._sort_out(targets, command, able, interrupt)
            targets = able
        question = Question(
            "POST",
            "/run",
            document=encode_run(command if pursuit is None else replace(command, stream=True)),
            limit_bytes=self._output_limit_bytes,
            read_timeout_s=self._settings.read_timeout_s if read_timeout_s is None else read_timeout_s,
            deadline=time.monotonic() + self._settings.run_deadline_s,
            stream_limit_bytes=0 if pursuit is None else self._stream_limit_bytes,
        )
        if pursuit is not None:
            yield from self._run_listening(targets, command, question, pursuit, interrupt)
            return
        for reply in self.ask(targets, question, interrupt):
            yield answers.run_result(reply, command.script, command.reqid, command.encoding)

    def _run_listening(
        self,
        targets: Sequence[Target],
        command: RunCommand,
        question: Question,
        pursuit: Pursuit,
        interrupt: Interrupt | None,
    ) -> Iterator[HostResult]:
        known = {target.name: target for target in targets}
        readings: dict[str, Reading] = {}
        for said in self._send(targets, question, interrupt):
            if isinstance(said, Part):
                if said.key not in readings:
                    readings[said.key] = pursuit.new_reading(said.key)
                pursuit.feed(readings[said.key], said.chunk)
                continue
            if isinstance(said, Reply):
                reading, reply = None, said
            else:
                self._note_key(known[said.key], said)
                reading, reply = self._end_reading(said, readings.pop(said.key, None), pursuit)
            result = answers.run_result(reply, command.script, command.reqid, command.encoding)
            if result.state == "lost":  # it runs all the same: it is asked where it was cut off
                pursuit.add(known[result.host], reading, room=len(targets))
                result = replace(result, state="running", error=f"{BROKEN} ({result.error})")
            yield result if reading is None else reading.remainder(result, reply.document)

    def _end_reading(
        self, answer: Answer, reading: Reading | None, pursuit: Pursuit
    ) -> tuple[Reading | None, Reply]:
        """The reply of an answer that is over, and its reading, which one that came as a whole needs not."""
        if reading is None and answer.body.endswith(b"\n"):  # a line of a stream; older agents give none
            reply = answers.read_reply(answer.key, answer)
            if reply.document is None or "from" not in reply.document:
                return None, reply
        if reading is None:
            reading = pursuit.new_reading(answer.key)
        return reading, pursuit.finish(reading, answer)

    def pursue(
        self,
        listener: Listener,
        reqid: str,
        script: str,
        encoding: str | None,
        *,
        read_timeout_s: float | None = None,
    ) -> Pursuit:
        """Who asks agents again, live, what became of a run; the caller turns and closes it."""
        from ctrl_exec.services.pursuit import Pursuit

        revoked = self._revoked()
        strangers: list[frozenset[str]] = []  # what a key not on record must not be; seldom needed, and long

        def make_call(target: Target, offsets: dict[str, int]) -> Call | None:
            if target.record.fingerprint in revoked:
                return None
            query = f"stream=1&stdout={offsets['stdout']}&stderr={offsets['stderr']}"
            question = Question(
                "GET",
                f"/result/{check_reqid(reqid)}?{query}",
                limit_bytes=self._output_limit_bytes,
                read_timeout_s=read_timeout_s or self._settings.read_timeout_s,
                stream_limit_bytes=self._stream_limit_bytes,
            )
            if not (target.record.fingerprint or strangers):
                strangers.append(self._registered())
            registered = strangers[0] if strangers else frozenset()
            # connections of its own are not kept: they would belong to no worker
            return self._make_call(target, question, question.as_bytes(), (revoked, registered))

        return Pursuit(
            listener,
            (reqid, script, encoding),
            lambda room: self._transport.new_loop(room=room),
            make_call,
            self._note_key,
        )

    def cancel(
        self, targets: Sequence[Target], reqid: str, *, interrupt: Interrupt | None = None
    ) -> Iterator[CancelOutcome]:
        """Have each end the run; whether it did."""
        question = Question(
            "POST",
            "/cancel",
            document=encode({"reqid": check_reqid(reqid)}),
            read_timeout_s=_CANCEL_PATIENCE_S,
            deadline=time.monotonic() + 2 * _CANCEL_PATIENCE_S,
        )
        for reply in self.ask(targets, question, interrupt):
            yield answers.cancel_outcome(reply)

    def ping(
        self,
        targets: Sequence[Target],
        reqid: str,
        *,
        read_timeout_s: float | None = None,
        interrupt: Interrupt | None = None,
    ) -> Iterator[PingResult]:
        """Whether each answers."""
        patience_s = self._settings.read_timeout_s if read_timeout_s is None else read_timeout_s
        question = Question(
            "POST",
            "/ping",
            document=encode({"reqid": reqid}),
            read_timeout_s=patience_s,
            wants_certificate=True,
        )
        for reply in self.ask(targets, question, interrupt):
            yield answers.ping_result(reply)

    def capabilities(
        self, targets: Sequence[Target], *, timeout_s: float, interrupt: Interrupt | None = None
    ) -> Iterator[CapabilitiesReport]:
        """What each may run; all of it within the time."""
        question = Question(
            "GET",
            "/capabilities",
            limit_bytes=_CAPABILITIES_BYTES,
            read_timeout_s=timeout_s,
            deadline=time.monotonic() + timeout_s,
            wants_certificate=True,
        )
        for reply in self.ask(targets, question, interrupt):
            yield answers.capabilities_report(reply)

    def result(
        self,
        targets: Sequence[Target],
        reqid: str,
        script: str,
        *,
        encoding: str | None = None,
        within_s: float | None = None,
        limit_bytes: int = 0,
        interrupt: Interrupt | None = None,
    ) -> Iterator[HostResult]:
        """What has become of a run on each; states as `agent_answers.polled_result` gives them.

        `within_s` bounds the whole question, `limit_bytes` each answer: one that is larger is `running`
        with the error `TOO_LARGE`.
        """
        question = Question(
            "GET",
            f"/result/{check_reqid(reqid)}",
            limit_bytes=limit_bytes or self._output_limit_bytes,
            read_timeout_s=self._settings.read_timeout_s,
            deadline=None if within_s is None else time.monotonic() + within_s,
        )
        for reply in self.ask(targets, question, interrupt):
            yield answers.polled_result(reply, script, reqid, encoding)

    def ask(
        self, targets: Sequence[Target], question: Question, interrupt: Interrupt | None = None
    ) -> Iterator[Reply]:
        """The question to each target, and its decoded answer; what all others are made of."""
        known = {target.name: target for target in targets}
        for said in self._send(targets, question, interrupt):
            if isinstance(said, Answer):
                self._note_key(known[said.key], said)
                yield answers.read_reply(said.key, said)
            elif isinstance(said, Reply):
                yield said

    def _send(
        self, targets: Sequence[Target], question: Question, interrupt: Interrupt | None
    ) -> Iterator[Answer | Part | Reply]:
        """What comes of the question; a reply of ours where the agent's key is revoked."""
        revoked = self._revoked()
        request = question.as_bytes(keeps_connection=self._settings.keeps_connections)
        has_strangers = any(not target.record.fingerprint for target in targets)
        registered = self._registered() if has_strangers else frozenset()
        calls = []
        for target in targets:
            if target.record.fingerprint in revoked:
                yield Reply(target.name, "refused", error="certificate revoked")
            else:
                calls.append(self._make_call(target, question, request, (revoked, registered)))
        yield from self._transport.send(calls, interrupt)

    def _make_call(
        self, target: Target, question: Question, request: bytes, keys: tuple[frozenset[str], frozenset[str]]
    ) -> Call:
        revoked, registered = keys
        fingerprint = target.record.fingerprint
        return Call(
            key=target.name,
            host=target.record.address,
            port=target.port,
            request=request,
            fingerprint=fingerprint or None,
            limit_bytes=question.limit_bytes,
            read_timeout_s=question.read_timeout_s,
            deadline=question.deadline,
            revoked=revoked,
            foreign=frozenset() if fingerprint else registered,
            streams=question.stream_limit_bytes > 0,
            stream_limit_bytes=question.stream_limit_bytes,
            wants_certificate=question.wants_certificate or not fingerprint,
        )

    def _note_key(self, target: Target, answer: Answer) -> None:
        if answer.failure is not None or answer.certificate is None or target.record.fingerprint:
            return
        if self._learn is not None:
            self._learn(target.name, answer.certificate)

    def _sort_out(
        self,
        targets: Sequence[Target],
        command: RunCommand,
        able: list[Target],
        interrupt: Interrupt | None,
    ) -> Iterator[HostResult]:
        """Put those that can do what the command needs into `able`; the others' results say why not."""
        known = {target.name: target for target in targets}
        needed = answers.needed_features(command)
        for found in self.ping(targets, command.reqid, interrupt=interrupt):
            missing = [feature for feature in needed if feature not in found.features]
            if found.is_ok and not missing:
                able.append(known[found.host])
                continue
            reply = Reply(found.host, found.state, found.rtt_ms, error=found.error)
            if found.is_ok:
                state, error = answers.TOO_OLD[missing[0]]
                reply = replace(reply, state=state, error=error)
            elif found.state in ("timeout", "lost"):  # it was only a ping: nothing runs
                reply = replace(reply, state="unreachable")
            yield answers.run_result(reply, command.script, command.reqid, command.encoding)

    @property
    def _output_limit_bytes(self) -> int:
        return _CHARS_A_BYTE * self._settings.max_output_bytes + 65536

    @property
    def _stream_limit_bytes(self) -> int:
        # what is not kept is passed over, but not for ever
        return _CHARS_A_BYTE * max(self._settings.max_run_output_bytes, _LEAST_STREAM_BYTES)
