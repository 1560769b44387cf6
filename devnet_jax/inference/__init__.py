"""A trained detector in use: scores, maps, thresholds."""
