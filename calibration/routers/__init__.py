"""From recorded pairs of steps to a router, and what it is worth on problems that it has not seen."""
