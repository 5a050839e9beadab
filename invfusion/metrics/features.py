"""Features of 8-bit images, over which distances between sets are taken. The name says what they are."""

from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from invfusion.codec import decode
from invfusion.errors import WeightsUnavailableError
from invfusion.metrics.weights import weights_file

INCEPTION_FILE = "inception-2015-12-05.pt"


class PixelFeatures:
    """Pixels averaged to 8x8, in [-1, 1] units: uint8 (B, C, H, W) -> float32 (B, 64 C). Needs no weights."""

    name = "pixel8x8"

    def __call__(self, images: Tensor) -> Tensor:
        return adaptive_avg_pool2d(decode(images), (8, 8)).flatten(1)


class InceptionFeatures:
    """The 2048 features behind FID and KID, with the resizing inside the network: uint8 -> float32 (B, 2048).

    Raises `WeightsUnavailableError` unless `inception-2015-12-05.pt` lies in the folder and clean-fid is installed.
    """

    name = "inception"

    def __init__(self, folder: Path, device: torch.device | str = "cpu") -> None:
        path = weights_file(folder, INCEPTION_FILE)
        try:
            from cleanfid.inception_torchscript import InceptionV3W
        except ImportError:
            raise WeightsUnavailableError("clean-fid is not installed: pip install clean-fid") from None
        try:
            self.network = InceptionV3W(str(path.parent), download=False, resize_inside=True).to(device)
        except RuntimeError as error:
            raise WeightsUnavailableError(f"{path} is not a TorchScript file: copy it again ({error})") from error
        self.device = device

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        features: Tensor = self.network(images.to(self.device, torch.float32))
        return features.cpu()
