"""Run records against a model: whatever happens in whatever order, what is read is what was written."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from ctrl_exec.common.messages import FINAL_STATES, STATES, HostResult
from ctrl_exec.services.journal import RunJournal
from ctrl_exec.services.records import new_record
from ctrl_exec.services.results import ResultStore

HOSTS = ("a", "b", "c")
RETENTION_S = 100


class RecordMachine(RuleBasedStateMachine):
    """One directory; `carried` are runs open here, `left` runs whose carrier died, `done` those finished."""

    carried = Bundle("carried")
    left = Bundle("left")
    done = Bundle("done")

    @initialize()
    def make(self) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="ctrl-exec-test-"))
        self.store = ResultStore(str(self.home / "runs"), RETENTION_S)
        self.journals: dict[str, RunJournal] = {}
        self.known: dict[str, dict[str, HostResult]] = {}
        self.ended: dict[str, int] = {}
        self.purged: set[str] = set()
        self.count = 0
        self.now = 10_000

    def teardown(self) -> None:
        for journal in self.journals.values():
            journal.close()
        shutil.rmtree(self.home, ignore_errors=True)

    @rule(target=carried)
    def begin(self) -> str:
        self.count += 1
        reqid = f"{self.count:016x}"
        record = new_record(reqid, "job", HOSTS, created=self.now)
        self.journals[reqid] = self.store.begin(record)
        self.known[reqid] = {each.host: each for each in record.results}
        return reqid

    @rule(
        reqid=carried, host=st.sampled_from(HOSTS), state=st.sampled_from(STATES), text=st.text(max_size=20)
    )
    def note(self, reqid: str, host: str, state: str, text: str) -> None:
        if reqid not in self.journals:
            return
        safe = text.encode("utf-8", "replace").decode()
        heard = HostResult(host, "job", state, reqid=reqid, exit=0, stdout=safe)
        before = self.known[reqid][host]
        assert self.journals[reqid].note(heard) == (before.state not in FINAL_STATES)
        if before.state not in FINAL_STATES:
            self.known[reqid][host] = heard

    @rule(target=left, reqid=consumes(carried), torn=st.binary(max_size=30))
    def crash(self, reqid: str, torn: bytes) -> str:
        journal = self.journals.pop(reqid, None)
        if journal is not None:
            journal.close()
            with (self.home / "runs" / f"{reqid}.events").open("ab") as events:
                events.write(torn.replace(b"\n", b""))
        return reqid

    @rule(target=carried, reqid=consumes(left))
    def adopt(self, reqid: str) -> str:
        journal = self.store.adopt(reqid)
        assert journal is not None
        self.journals[reqid] = journal
        return reqid

    @rule(reqid=carried)
    def adopt_what_is_carried(self, reqid: str) -> None:
        if reqid in self.journals:
            assert self.store.adopt(reqid) is None

    @rule(reqid=carried)
    def say_interrupted(self, reqid: str) -> None:
        if reqid in self.journals:
            assert not self.journals[reqid].write("interrupted").complete

    @rule(target=done, reqid=consumes(carried))
    def finish(self, reqid: str) -> str:
        journal = self.journals.pop(reqid)
        for host in journal.pending:
            self.known[reqid][host] = HostResult(host, "job", "lost", reqid=reqid, exit=-1)
            journal.note(self.known[reqid][host])
        journal.finish("completed", self.now)
        self.ended[reqid] = self.now
        return reqid

    @rule(reqid=done)
    def adopt_what_is_done(self, reqid: str) -> None:
        assert self.store.adopt(reqid) is None

    @rule(seconds=st.integers(0, RETENTION_S))
    def pass_time(self, seconds: int) -> None:
        self.now += seconds

    @rule()
    def purge(self) -> None:
        due = {reqid for reqid, at in self.ended.items() if at <= self.now - RETENTION_S} - self.purged
        assert self.store.purge(self.now) == len(due)
        self.purged |= due

    @rule()
    def sweep(self) -> None:
        assert self.store.sweep() == 0, "there is nothing to put right"

    @invariant()
    def what_is_read_is_what_was_written(self) -> None:
        for reqid, known in getattr(self, "known", {}).items():
            record = self.store.load(reqid)
            if reqid in self.purged:
                assert record is None
                continue
            assert record is not None
            assert record.complete == (reqid in self.ended)
            for result in record.results:
                expected = known[result.host]
                assert (result.state, result.stdout) == (expected.state, expected.stdout)
            assert self.store.is_carried(reqid) == (reqid in self.journals)

    @invariant()
    def what_is_unfinished_is_listed(self) -> None:
        if hasattr(self, "known"):
            assert set(self.store.unfinished()) == set(self.known) - set(self.ended)


RecordMachine.TestCase.settings = settings(max_examples=20, stateful_step_count=25, deadline=None)
test_records = RecordMachine.TestCase
