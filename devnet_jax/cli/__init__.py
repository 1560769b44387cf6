"""The command line: flags, logging, error messages."""
