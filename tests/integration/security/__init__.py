"""What an attacker tries, against real processes."""
