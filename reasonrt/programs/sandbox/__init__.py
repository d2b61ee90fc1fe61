"""Where programs that a model has written run."""
