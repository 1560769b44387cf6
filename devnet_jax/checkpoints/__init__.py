"""Checkpoints of a run, on disk or in a bucket."""
