"""Evaluation of a detector on its test images."""
