"""EAGLE-1, 2 and 3 (2401.15077, 2406.16858, 2503.01840): a small head on the target's features drafts."""
