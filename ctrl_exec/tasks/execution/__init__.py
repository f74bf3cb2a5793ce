"""Executions from request to end: policies, claims, carriers, logs, retention."""
