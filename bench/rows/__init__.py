"""One module for each group of rows of the table; each has `GROUP`, what `python -m bench --list` shows."""
