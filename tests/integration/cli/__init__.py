"""The command line against agents that answer, lie or are not there."""
