"""Scorers of texts against references, by name: `task.metric` of a data set."""
