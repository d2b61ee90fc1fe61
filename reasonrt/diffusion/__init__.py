"""Block diffusion: text from blocks of masked tokens, several tokens a pass, with residual context."""
