"""Small models of our own: the problems that they learn from, the recipe that makes them, and their weights."""
