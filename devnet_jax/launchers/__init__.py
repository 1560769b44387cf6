"""What the launchers under launch/ start, print, watch over and clear away."""
