"""What W&B is told of a run, and the process of its own that tells it."""
