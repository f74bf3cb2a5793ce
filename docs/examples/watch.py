#!/usr/bin/env python3
"""Start a run and follow it, with the standard library alone: watch.py URL TOKEN HOST SCRIPT [ARG...]"""

import http.client
import json
import sys
import time
import urllib.error
import urllib.request
import uuid

url, token, host, script, *args = sys.argv[1:]
key = str(uuid.uuid4())  # one for all attempts: however often the request is sent, it is one run


def ask(path, body=None, **headers):
    headers["Authorization"] = f"Bearer {token}"
    payload = None if body is None else json.dumps(body).encode()
    return urllib.request.urlopen(urllib.request.Request(url + path, payload, headers), timeout=60)


def events(reqid):
    """Each event of the run once, also when the connection or the server dies meanwhile."""
    place = ""
    while True:
        try:
            for line in ask(f"/runs/{reqid}/output{place}"):
                event = json.loads(line)
                yield event
                if event["event"] == "end":
                    return
                place = f"?after={event['id']}"
        except urllib.error.HTTPError as error:
            if error.code != 503:  # there: no room at the moment
                raise
        except (OSError, ValueError, http.client.HTTPException):
            pass  # broken, perhaps within a line: go on after the last whole one
        time.sleep(1)


request = {"hosts": [host], "script": script, "args": args, "async": True}
failed = 0
for event in events(json.load(ask("/run", request, **{"Idempotency-Key": key}))["reqid"]):
    if event["event"] in ("stdout", "stderr"):
        print(f"{event['host']}: {event['text']}", end="", flush=True)
    elif event["event"] == "exit":
        failed |= event["state"] != "ok"
sys.exit(failed)
