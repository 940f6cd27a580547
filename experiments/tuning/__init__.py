"""Equal tuning: knobs chosen on training prompts for speed under a fidelity bound."""
