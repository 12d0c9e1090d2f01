"""Problems to measure on, and whether an answer to one is right."""
