"""What is learned before serving, with its guarantee."""
