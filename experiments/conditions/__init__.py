"""Under what conditions a run was measured: load, clocks, throttling, energy."""
