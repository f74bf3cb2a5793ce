"""What one writes first: one `multiprocessing.Process` a host, `http.client` over TLS in each.

python process_per_host.py LISTING PORT COUNT      prints {"wall_s", "cpu_s", "ok"}
"""

from __future__ import annotations

import http.client
import json
import multiprocessing
import resource
import ssl
import sys
import time
from pathlib import Path
from typing import Any

BODY = json.dumps({"script": "true", "args": [], "reqid": "0123456789abcdef", "username": "", "token": ""})


def ask(ip: str, port: int, context: ssl.SSLContext, answers: Any) -> None:
    """One host's answer into the queue."""
    connection = http.client.HTTPSConnection(ip, port, context=context, timeout=120)
    connection.request("POST", "/run", BODY, {"Content-Type": "application/json", "Connection": "close"})
    answer = json.loads(connection.getresponse().read())
    connection.close()
    answers.put((ip, answer["exit"]))


def cpu_s() -> float:
    """CPU seconds of this process and its ended children."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def main() -> None:
    """Ask all, print what it took."""
    listing, port, count = json.loads(Path(sys.argv[1]).read_text()), int(sys.argv[2]), int(sys.argv[3])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_cert_chain(listing["identity"])
    context.load_verify_locations(listing["ca"])
    hosts = listing["agents"][:count]
    before_s, start = cpu_s(), time.perf_counter()
    answers: Any = multiprocessing.SimpleQueue()
    processes = [
        multiprocessing.Process(target=ask, args=(each["ip"], port, context, answers)) for each in hosts
    ]
    for process in processes:
        process.start()
    found = [answers.get() for _ in processes]
    for process in processes:
        process.join()
    wall_s = time.perf_counter() - start
    ok = sum(code == 0 for _, code in found)
    print(json.dumps({"wall_s": wall_s, "cpu_s": cpu_s() - before_s, "ok": ok}))


if __name__ == "__main__":
    main()
