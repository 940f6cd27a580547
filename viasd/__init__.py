"""Multi-tier verification for speculative decoding (VIA-SD) on one decode engine."""

__version__ = "0.1.0"
