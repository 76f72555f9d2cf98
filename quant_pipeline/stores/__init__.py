"""Input and output, one library each, no decisions."""
