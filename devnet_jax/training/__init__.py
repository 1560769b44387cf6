"""Training of a run: step, loop, optimiser, log and resuming."""
