"""Scores, explanation maps and thresholds of a trained detector."""
