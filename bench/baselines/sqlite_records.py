"""Run records in SQLite, `synchronous=FULL`: one commit at the start of a run, one at its end.

python sqlite_records.py PATH JOURNAL_MODE COUNT     prints {"rate": records a second}
"""

from __future__ import annotations

import json
import sqlite3
import sys
import time


def main() -> None:
    """Write so many records, each twice."""
    path, journal_mode, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    database = sqlite3.connect(path, isolation_level=None)
    database.execute(f"pragma journal_mode={journal_mode}")
    database.execute("pragma synchronous=FULL")
    database.execute("create table if not exists runs (reqid text primary key, record text)")
    began = {
        "script": "true", "args": [], "mode": "sync", "state": "running", "complete": False,
        "created": 1700000000, "hosts": ["real-01"], "pending": ["real-01"], "results": [],
        "submitter": {"username": "bench", "source_ip": "127.0.0.1"},
    }  # fmt: skip
    result = {"host": "real-01", "script": "true", "exit": 0, "stdout": "", "stderr": "", "state": "ok"}
    ended = began | {"state": "completed", "complete": True, "pending": [], "results": [result]}
    offset = database.execute("select count(*) from runs").fetchone()[0]
    start = time.perf_counter()
    for number in range(offset, offset + count):
        reqid = f"{number:016x}"
        database.execute("insert into runs values (?, ?)", (reqid, json.dumps(began | {"reqid": reqid})))
        database.execute("update runs set record = ? where reqid = ?", (json.dumps(ended), reqid))
    print(json.dumps({"rate": count / (time.perf_counter() - start)}))


if __name__ == "__main__":
    main()
