"""Tests of the task layer against real processes."""
