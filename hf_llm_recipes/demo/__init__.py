"""A page on which a run's model is tried, and its wrong answers become rows of the next run."""
