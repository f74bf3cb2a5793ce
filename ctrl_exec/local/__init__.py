"""Local commands: one run to its end, here or by `ctrl-exec-local`, which runs as somebody else."""
