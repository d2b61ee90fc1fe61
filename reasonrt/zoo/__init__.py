"""The small models that ship: the problems that they learn from, the recipe that trains them, and their weights."""
