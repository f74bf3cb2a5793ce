#!/bin/bash
# Says the time, in seconds of the epoch, COUNT times, PAUSE seconds apart.
for ((left = ${1:-8}; left > 0; left--)); do
    printf '%s\n' "$EPOCHREALTIME"
    sleep "${2:-0.5}"
done
