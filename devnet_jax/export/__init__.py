"""A detector in one file: writing it and reading it."""
