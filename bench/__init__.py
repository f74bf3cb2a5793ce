"""The benches: every speed target of the project, measured beside its baselines in one run."""
