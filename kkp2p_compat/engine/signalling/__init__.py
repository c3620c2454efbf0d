"""What the two sides of a call tell each other: texts and keys."""
