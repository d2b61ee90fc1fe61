"""What solves the requests that the gateway lets in: one runtime in this process, or replicas on Ray."""
