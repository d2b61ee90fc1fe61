"""When a request has thought enough: signals, rules over them, certificates, and the loop that stops a request."""
