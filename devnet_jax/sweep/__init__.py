"""Many runs: a grid of jobs, run side by side, and the table that they make."""
