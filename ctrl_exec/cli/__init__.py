"""The command line front end: arguments, tables, exit codes."""
