"""The machine that a run finds: process setup, devices, files."""
