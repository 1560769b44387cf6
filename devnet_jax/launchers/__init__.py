"""Launchers of several processes: local processes, Slurm, Cloud TPU, Kubernetes."""
