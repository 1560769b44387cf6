"""Sweeps: a grid of runs, executed in parallel, and tables of their results."""
