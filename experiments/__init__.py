"""Running, measuring and reporting: everything around the decode loop."""
