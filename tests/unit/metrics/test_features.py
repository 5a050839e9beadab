from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from invfusion.errors import WeightsUnavailableError
from invfusion.metrics import LPIPS, InceptionFeatures, Networks, pixel_features
from invfusion.metrics.tools import lpips as lpips_module
from invfusion.metrics.tools.torchvision_import import import_torchvision


def test_pixels_are_averaged_to_8x8() -> None:
    images = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    images[1, 0, :2, :2] = 255
    features = pixel_features(images)
    assert features.shape == (2, 192)
    assert features[0].tolist() == [-1] * 192
    assert features[1, :2].tolist() == [1, -1]


def test_missing_weights_are_reported_with_their_path(tmp_path: Path) -> None:
    with pytest.raises(WeightsUnavailableError, match=str(tmp_path / "inception-2015-12-05.pt")):
        InceptionFeatures(Networks(tmp_path))
    with pytest.raises(WeightsUnavailableError, match=str(tmp_path / "alexnet-owt-7be5be79.pth")):
        LPIPS(Networks(tmp_path, 64))


def test_a_broken_inception_file_is_reported(tmp_path: Path) -> None:
    pytest.importorskip("cleanfid")
    (tmp_path / "inception-2015-12-05.pt").write_bytes(b"half a download")
    with pytest.raises(WeightsUnavailableError, match="not a TorchScript file"):
        InceptionFeatures(Networks(tmp_path))


def test_lpips_weights_must_be_the_real_ones(tmp_path: Path) -> None:
    (tmp_path / "alexnet-owt-7be5be79.pth").write_bytes(b"something else")
    with pytest.raises(WeightsUnavailableError, match="corrupt"):
        LPIPS(Networks(tmp_path, 64))


def test_small_images_have_no_lpips(tmp_path: Path) -> None:
    with pytest.raises(WeightsUnavailableError, match="16 px are too small"):
        LPIPS(Networks(tmp_path, 16))


def test_lpips_loads_a_backbone_from_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in of the right shapes: it is a distance of each pair, and the file's weights are used."""
    if not find_spec("lpips"):
        pytest.skip("lpips is not installed")
    import_torchvision()
    from torchvision.models import alexnet

    backbone = alexnet()
    torch.save(backbone.state_dict(), tmp_path / "alexnet-owt-7be5be79.pth")
    monkeypatch.setattr(lpips_module, "ALEXNET_SHA256", "")
    metric = LPIPS(Networks(tmp_path, 32))
    torch.testing.assert_close(metric.network.net.slice1[0].weight, backbone.features[0].weight)
    images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    other = images.clone()
    other[1] = 255 - other[1]
    same, different = metric(images, other).tolist()
    assert same == 0
    assert different > 0
