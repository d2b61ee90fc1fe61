"""How a request is solved: a policy decides what to ask of which engine and what to commit."""
