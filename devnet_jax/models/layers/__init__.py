"""Layers that Flax lacks, or that are slow on a CPU."""
