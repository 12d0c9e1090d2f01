"""Times of the Metal kernels beside what they replace."""
