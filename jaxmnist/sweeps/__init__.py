"""Sweeps: what to try, the rounds in which it is trained, and what they leave."""
