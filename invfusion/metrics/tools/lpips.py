"""LPIPS with its pretrained AlexNet, at the images' own resolution."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from invfusion.codec import decode
from invfusion.errors import WeightsUnavailableError
from invfusion.metrics.base import Networks
from invfusion.metrics.tools.torchvision_import import import_torchvision
from invfusion.metrics.tools.weights import weights_file

ALEXNET_FILE = "alexnet-owt-7be5be79.pth"
ALEXNET_SHA256 = "7be5be79"
# AlexNet's second pooling has nothing left to pool below this size.
MIN_SIZE = 31


class LPIPS:
    """Perceptual distance of each pair of uint8 images (B, 3, H, W), (B,) float64; version 0.1, AlexNet.

    Raises `WeightsUnavailableError` unless the backbone's weights lie in the folder, lpips is installed, and the images
    are large enough for the network.
    """

    def __init__(self, networks: Networks) -> None:
        if networks.image_size is not None and networks.image_size < MIN_SIZE:
            raise WeightsUnavailableError(
                f"images of {networks.image_size} px are too small for AlexNet at native resolution ({MIN_SIZE} px)"
            )
        path = weights_file(networks.weights, ALEXNET_FILE, ALEXNET_SHA256)
        try:
            import_torchvision()
            import lpips
        except (ImportError, RuntimeError) as error:
            raise WeightsUnavailableError(f"the package lpips or its torchvision cannot be used: {error}") from error
        # The package carries the linear heads; its own way to the backbone would download it.
        self.network = lpips.LPIPS(net="alex", version="0.1", pnet_rand=True, verbose=False)
        _load_backbone(self.network.net, torch.load(path, map_location="cpu", weights_only=True))
        self.network.to(networks.device).eval()
        self.device = networks.device

    @torch.inference_mode()
    def __call__(self, images: Tensor, truth: Tensor) -> Tensor:
        distance: Tensor = self.network(decode(images).to(self.device), decode(truth).to(self.device))
        return distance.flatten().double().cpu()


def _load_backbone(backbone: Any, state: Mapping[str, Tensor]) -> None:
    """Copy torchvision's `features.<layer>.*` into the slices `slice<k>.<layer>.*` of the package's backbone."""
    own = backbone.state_dict()
    named = {key: state[f"features.{key.split('.', 1)[1]}"] for key in own}
    backbone.load_state_dict(named)
