"""The OpenAI-compatible endpoint: wire models, guards, routes; in one process or on Ray."""
