"""An evaluation where Inception's file is at hand: its numbers are those that clean-fid tells of the same pictures."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from test_evaluate import make_params, no_tracking, save_models, stage_images
from torch import Tensor, nn

from components import tracking
from components.evaluation.evaluate import evaluate
from invfusion.degradations import FAMILIES
from invfusion.metrics import METRICS
from invfusion.metrics.tools.torchvision_import import import_torchvision
from invfusion.samplers import Heun

# Fewer than there are images, so that covariances are regular; zeros after.
SHOWN = 4


class InceptionShaped(nn.Module):
    """A network with the interface of the published Inception file, and random weights."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, SHOWN))
        nn.init.normal_(self.layers[2].weight, generator=torch.Generator().manual_seed(0))

    def forward(self, x: Tensor, return_features: bool = False) -> Tensor:
        features = self.layers((x - 128) / 128)
        return nn.functional.pad(features, (0, 2048 - features.shape[1]))


def features_of(images: Tensor, folder: Path) -> np.ndarray:
    """By clean-fid, of PNG files of uint8 (n, 3, H, W)."""
    from cleanfid import fid
    from cleanfid.inception_torchscript import InceptionV3W

    folder.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{i:03d}.png")
    network = InceptionV3W("weights", download=False, resize_inside=True)
    return fid.get_folder_features(
        str(folder), model=network, num_workers=0, mode="legacy_tensorflow", device=torch.device("cpu"), verbose=False
    )  # fmt: skip


def test_numbers_are_clean_fids_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cleanfid")
    import_torchvision()
    from cleanfid import fid

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tracking, "start_run", no_tracking)
    stage_images()
    save_models()
    params = make_params(
        methods=["Palette"], families=[FAMILIES["box_inpainting"]()], sampler=Heun(n_steps=1), n_unconditional=0,
        calibration_images=0, weights_dir=Path("weights"),
    )  # fmt: skip
    params = params.model_copy(
        update={"report": params.report.model_copy(update={"gallery_images": params.evaluate.n_images})}
    )
    Path("weights").mkdir()
    torch.jit.script(InceptionShaped()).save(f"weights/{METRICS['fid'].weights}")
    evaluate(params)
    records = json.loads(Path("reports/evaluation.json").read_text())
    found = {r["metric"]: r["value"] for r in records if r["metric"] in ("fid", "cfid", "kid")}
    folder = Path("artifacts/evaluation/restorations/box_inpainting")
    restored, truth = (
        features_of(load_file(folder / f"{name}.safetensors")["images"], tmp_path / name)
        for name in ("palette", "truth")
    )
    assert found["fid"] == pytest.approx(fid.fid_from_feats(restored[:, :SHOWN], truth[:, :SHOWN]), rel=1e-3)
    assert found["kid"] == pytest.approx(
        fid.kernel_distance(restored.astype("f8"), truth.astype("f8"), num_subsets=1), rel=1e-3
    )
    # What was measured shows; what is hidden is shown as grey.
    images = {name: load_file(folder / f"{name}.safetensors")["images"] for name in ("palette", "truth", "measured")}
    hidden = (images["measured"] != images["truth"]).any(1, keepdim=True)
    projected = features_of(torch.where(hidden, images["palette"], images["truth"]), tmp_path / "projected")
    assert found["cfid"] == pytest.approx(fid.fid_from_feats(projected[:, :SHOWN], truth[:, :SHOWN]), rel=1e-3)
    assert 0 < found["cfid"] < found["fid"]
