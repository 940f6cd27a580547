"""Which method, draft length, skip ratio and thresholds suit a pair at a bound on fidelity, from what is stored."""
