"""Tasks: procedural families, whose problems are made by seed, and data sets; how answers are scored."""
