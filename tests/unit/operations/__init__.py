"""Tests of ctrl_exec.operations."""
