from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from invfusion.errors import WeightsUnavailableError
from invfusion.metrics import LPIPS, METRICS, InceptionFeatures, Networks, Restorations, pixel_features
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
    assert different == pytest.approx(_of_the_package(backbone, images[1:], other[1:]), rel=1e-5)


def _of_the_package(backbone: torch.nn.Module, images: torch.Tensor, other: torch.Tensor) -> float:
    """What the package tells of 8-bit images when torchvision brings it the backbone."""
    import lpips
    from lpips import pretrained_networks

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrained_networks.tv, "alexnet", lambda **_: backbone)
        network = lpips.LPIPS(net="alex", version="0.1", verbose=False).eval()
    with torch.inference_mode():
        return float(network(images / 127.5 - 1, other / 127.5 - 1))


SHOWN = 24


class InceptionShaped(torch.nn.Module):
    """A network with the interface of the published Inception file, and random weights: SHOWN features, zeros after."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten(), torch.nn.Linear(48, SHOWN))
        torch.nn.init.normal_(self.layers[2].weight, generator=torch.Generator().manual_seed(0))

    def forward(self, x: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        features = self.layers((x - 128) / 128)
        return torch.nn.functional.pad(features, (0, 2048 - features.shape[1]))


def test_distances_over_files_are_clean_fids_own(tmp_path: Path) -> None:
    """From PNG files and a weight file on both ways: clean-fid's reading, features and distances, and ours."""
    pytest.importorskip("cleanfid")
    import_torchvision()
    from cleanfid import fid
    from cleanfid.inception_torchscript import InceptionV3W
    from PIL import Image

    torch.jit.script(InceptionShaped()).save(str(tmp_path / "inception-2015-12-05.pt"))
    draws = torch.Generator().manual_seed(1)
    ours = {name: torch.randint(n, (40, 3, 32, 32), generator=draws, dtype=torch.uint8) for name, n in
            (("truth", 256), ("restored", 200), ("projected", 230))}  # fmt: skip
    theirs = {}
    network = InceptionV3W(str(tmp_path), download=False, resize_inside=True)
    for name, images in ours.items():
        (tmp_path / name).mkdir()
        for i, image in enumerate(images):
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / name / f"{i:03d}.png")
        theirs[name] = fid.get_folder_features(
            str(tmp_path / name), model=network, num_workers=0, mode="legacy_tensorflow", device=torch.device("cpu"),
            verbose=False,
        )  # fmt: skip
    networks = Networks(tmp_path)
    restored = Restorations(
        images=ours["restored"], truth=ours["truth"], projected=ours["projected"], networks=networks
    )
    for metric, name in (("fid", "restored"), ("cfid", "projected"), ("kid", "restored")):
        reference = METRICS[metric].reference(ours["truth"], networks)
        values = METRICS[metric].values(restored)
        torch.testing.assert_close(values, torch.from_numpy(theirs[name]), rtol=1e-4, atol=1e-4)
        found = METRICS[metric].number(values, reference)
        if metric == "kid":
            expected = fid.kernel_distance(theirs[name].astype("f8"), theirs["truth"].astype("f8"), num_subsets=1)
        else:
            # Features that are zero everywhere add nothing but time.
            expected = fid.fid_from_feats(theirs[name][:, :SHOWN], theirs["truth"][:, :SHOWN])
        assert found == pytest.approx(expected, rel=1e-3), metric
