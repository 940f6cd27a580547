"""The parts of a bench: what is asked, the loops that are compared, steps, memory, start-up, and how they are told."""
