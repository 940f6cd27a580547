"""Notebooks over stored runs: percent scripts, which are the truth, and the same executed (`execute.py` makes them)."""
