"""What executes a task of each kind; each module owns one."""
