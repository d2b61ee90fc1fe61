"""Language models by one port, which is `reasonrt.ports.Engine`."""
