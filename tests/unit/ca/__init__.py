"""Tests of ctrl_exec.ca."""
