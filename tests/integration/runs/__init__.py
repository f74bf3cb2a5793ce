"""Runs, their carriers and records, as real processes against emulated agents."""
