"""Workflows: steps, approvals, nesting, and how the scheduler moves them on."""
