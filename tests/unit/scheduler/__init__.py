"""The pure parts of the clock."""
