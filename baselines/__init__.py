"""Decoding methods that VIA-SD is compared with, one file or folder per idea."""
