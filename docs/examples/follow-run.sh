#!/bin/sh
# Start a run, show it live and wait for it:   URL=… TOKEN=… follow-run.sh HOST SCRIPT [ARG...]
# Prints each line with its host; ends with 0 if the script succeeded on all hosts.
set -eu
host=$1 script=$2
shift 2
auth="Authorization: Bearer $TOKEN"
seen=$(mktemp)
trap 'rm -f "$seen"' EXIT
# one key for all attempts: however often the request is sent, it is one run
key=$(cat /proc/sys/kernel/random/uuid)
body=$(jq -cn '{hosts: [$host], script: $script, args: $ARGS.positional, async: true}' \
    --arg host "$host" --arg script "$script" --args -- "$@")
until reqid=$(curl -sf "$URL/run" -H "$auth" -H "Idempotency-Key: $key" -d "$body" | jq -er .reqid); do
    sleep 2
done
place=
until [ "$(tail -n 1 "$seen" | jq -R 'fromjson? | .event')" = '"end"' ]; do
    # the stream may break at any moment, also within a line; the next one begins after the last whole one
    curl -sNf "$URL/runs/$reqid/output$place" -H "$auth" | tee "$seen" |
        jq -Rr --unbuffered 'fromjson? | select(.text) | .host as $host | .text / "\n" | .[] | select(. != "") | "\($host): \(.)"'
    last=$(jq -Rn '[inputs | fromjson?] | last.id // empty' "$seen")
    if [ -n "$last" ]; then place="?after=$last"; else sleep 1; fi
done
curl -sf "$URL/status/$reqid" -H "$auth" | jq -e 'all(.results[]; .state == "ok")' > /dev/null
