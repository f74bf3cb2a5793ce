"""The task layer: projects, tasks, schedules, executions, identity, above runs and below the front ends."""
