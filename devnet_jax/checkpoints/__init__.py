"""Checkpoints of a run, on a local disk or in a bucket."""
