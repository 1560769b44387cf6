"""Export of a detector to one file, and scoring from that file."""
