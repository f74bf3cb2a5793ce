"""What we compare with: small programs of our own, and tools that others made."""
