"""Stored runs as one self-contained HTML page: `python -m experiments.report`."""
