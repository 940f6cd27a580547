"""Sweeps of many jobs: in parallel, on devices that timed runs have for themselves, and surviving what fails."""
