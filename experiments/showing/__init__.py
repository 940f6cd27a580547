"""What README and docs show of stored results: `python -m experiments.pictures`."""
