"""What program search learns before serving: how candidates vote, when they are enough, when to believe none."""
