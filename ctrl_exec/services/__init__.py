"""One concern each, on plain paths: registry, locks, results, authority, fan-out; never each other."""
