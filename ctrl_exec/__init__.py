"""ctrl-exec: run allow-listed scripts on a fleet of agents over mutual TLS."""

__version__ = "0.1.0"
