"""What the status of an ended process says to whoever started it."""

DONE = 0
ERROR = 1  # a mistake to mend: starting again would meet it again
RESUME = 75  # told to stop, and saved: the same command goes on (EX_TEMPFAIL of sysexits.h)
PEER_LOST = 76  # another process of the run is gone or stuck: start all again, they go on
INTERRUPTED = 130  # Ctrl-C, as shells have it
