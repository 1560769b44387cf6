"""Scores of test images and what they measure."""
