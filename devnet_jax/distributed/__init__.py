"""Training and evaluation on several devices and in several processes."""
