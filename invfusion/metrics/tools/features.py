"""Features of 8-bit images, over which distances between sets are taken. The name says what they are."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from invfusion.codec import decode
from invfusion.errors import WeightsUnavailableError
from invfusion.metrics.base import Networks, Restorations
from invfusion.metrics.tools.weights import weights_file

INCEPTION_FILE = "inception-2015-12-05.pt"
# As many images at a time as fit any machine.
PART = 256


@dataclass(frozen=True)
class Features:
    """Features of the images of a set, by an extractor uint8 (B, C, H, W) -> (B, d) that `load` makes."""

    load: Callable[[Networks], Callable[[Tensor], Tensor]]

    def of_images(self, restored: Restorations) -> Tensor:
        """Of the restored images, (n, d)."""
        return self.of_reference(restored.images, restored.networks)

    def of_projected(self, restored: Restorations) -> Tensor:
        """Of the images made consistent with their measurements, (n, d)."""
        return self.of_reference(restored.need("projected"), restored.networks)

    def of_reference(self, images: Tensor, networks: Networks) -> Tensor:
        """Of any images uint8 (n, C, H, W), (n, d)."""
        extract = networks.load(self.load)
        return torch.cat([extract(part) for part in torch.split(images, PART)])


def pixel_features(images: Tensor) -> Tensor:
    """Pixels averaged to 8x8, in [-1, 1] units: uint8 (B, C, H, W) -> float32 (B, 64 C). Needs no weights."""
    return adaptive_avg_pool2d(decode(images), (8, 8)).flatten(1)


class InceptionFeatures:
    """The 2048 features behind FID and KID, with the resizing inside the network: uint8 -> float32 (B, 2048).

    Raises `WeightsUnavailableError` unless `inception-2015-12-05.pt` lies in the folder and clean-fid is installed.
    """

    def __init__(self, networks: Networks) -> None:
        path = weights_file(networks.weights, INCEPTION_FILE)
        try:
            from cleanfid.inception_torchscript import InceptionV3W
        except ImportError:
            raise WeightsUnavailableError("clean-fid is not installed: pip install clean-fid") from None
        try:
            self.network = InceptionV3W(str(path.parent), download=False, resize_inside=True).to(networks.device)
        except RuntimeError as error:
            raise WeightsUnavailableError(f"{path} is not a TorchScript file: copy it again ({error})") from error
        self.device = networks.device

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        features: Tensor = self.network(images.to(self.device, torch.float32))
        return features.cpu()


PIXELS = Features(lambda _: pixel_features)
INCEPTION = Features(InceptionFeatures)
