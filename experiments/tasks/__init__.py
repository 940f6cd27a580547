"""Procedural task families: problems made by seed, split by content, scored without a model."""
