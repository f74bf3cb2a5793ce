"""Tests of ctrl_exec.pairing."""
