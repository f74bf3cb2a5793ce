"""Live runs: output as it comes, cancels, batches."""
