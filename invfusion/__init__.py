"""InvFusion: degradation-aware diffusion restoration (arXiv 2504.01689) as a PyTorch library."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from invfusion.restoration import (
        Restoration,
        as_denoiser,
        load_image,
        load_kernel,
        load_mask,
        load_model,
        restore,
        save_image,
    )

__all__ = [
    "Restoration",
    "as_denoiser",
    "load_image",
    "load_kernel",
    "load_mask",
    "load_model",
    "restore",
    "save_image",
]


def __getattr__(name: str) -> Any:
    """What `invfusion.restoration` offers, imported at its first use: `import invfusion` alone loads no torch."""
    if name in __all__:
        return getattr(import_module("invfusion.restoration"), name)
    raise AttributeError(f"module 'invfusion' has no attribute '{name}'")
