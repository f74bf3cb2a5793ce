"""The agent as a process, spoken to over TLS."""
