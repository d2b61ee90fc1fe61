"""Who writes the next step."""
