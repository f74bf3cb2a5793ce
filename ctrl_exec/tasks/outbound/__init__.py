"""HTTP requests that leave us, under the rules for addresses, time and size."""
