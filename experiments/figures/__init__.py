"""Figures of stored runs: one module each, whose `draw(runs, **options)` is a pure function of their rows."""
