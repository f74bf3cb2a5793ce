"""Programs that do one piece of our own work and print what it took as a line of JSON."""
