"""The process and its environment: start-up, devices, files, the workdir."""
