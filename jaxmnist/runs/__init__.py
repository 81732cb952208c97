"""A run and what it leaves: files, checkpoints, pictures, what it says."""
