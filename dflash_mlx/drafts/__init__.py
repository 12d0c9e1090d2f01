"""The draft networks: block-diffusion models that read the target's hidden states."""
