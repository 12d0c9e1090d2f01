"""Data sets: problems, where they come from, and how answers are scored."""
