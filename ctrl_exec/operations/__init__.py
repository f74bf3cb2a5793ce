"""What ctrl-exec does, once: every front end calls these and nothing below them."""
