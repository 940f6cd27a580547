"""What a pair needs and whether it is there, before any weights are."""
