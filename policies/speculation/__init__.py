"""Step-level speculation: the draft writes, a router judges each step, the target writes those that it should."""
