"""Command line: flags, logging, errors for people."""
