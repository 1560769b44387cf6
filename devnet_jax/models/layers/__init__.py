"""Layers that Flax does not have, or that are slow on a CPU."""
