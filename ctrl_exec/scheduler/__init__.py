"""The clock front end: purge, recovery, due work."""
