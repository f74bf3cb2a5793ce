"""Tests of the agent's parts, each by itself."""
