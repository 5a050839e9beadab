"""InvFusion: degradation-aware diffusion restoration (arXiv 2504.01689) as a PyTorch library."""

__version__ = "0.1.0"
