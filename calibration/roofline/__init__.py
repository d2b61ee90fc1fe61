"""How fast a GPU can decode at most, autoregressively and by block diffusion, and which of the two is faster."""
