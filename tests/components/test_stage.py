from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from components.data import build_dataset
from components.data.prior import PRIOR, staged_prior
from components.data.stage import stage
from components.params import PriorFitConfig
from invfusion.data import StagedDataset
from invfusion.errors import ConfigError, DataError


@pytest.fixture
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A project folder with a dataset of 60 images of 8x8."""
    monkeypatch.chdir(tmp_path)
    Path("images").mkdir()
    for i in range(60):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(f"images/{i:02d}.png")
    source = ["--source", "folder", "--path", "images"]
    build_dataset.main([*source, "--out", "data/mine", "--size", "8", "--shard-images", "10"])
    return SimpleNamespace(
        data=SimpleNamespace(
            name="mine", shards=Path("data/mine"), image_size=8, channels=3, max_skipped=0, gaussian_prior=None
        )
    )


def test_stage_says_what_it_did(params: SimpleNamespace, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        staged = stage(params)
        stage(params)
    assert staged == Path("artifacts/staged")
    assert sum(len(StagedDataset(staged, split)) for split in ("train", "val", "test")) == 60
    first, second = (r.getMessage() for r in caplog.records if r.name == "components.data.stage")
    assert "0 shards were already staged" in first
    assert f"{len(list(Path('data/mine').glob('*.tar')))} shards were already staged" in second


def test_the_prior_is_fitted_once(params: SimpleNamespace) -> None:
    params.data.gaussian_prior = PriorFitConfig(rank=5)
    path = stage(params) / PRIOR
    dataset = StagedDataset(path.parent, "train")
    staged_prior(path.parent).check_fits(dataset.image_shape, dataset.digest)
    written = path.stat().st_mtime_ns
    stage(params)
    assert path.stat().st_mtime_ns == written
    params.data.gaussian_prior = PriorFitConfig(rank=4)
    stage(params)
    assert path.stat().st_mtime_ns != written
    params.data.gaussian_prior = PriorFitConfig(rank=4, clusters=3)
    assert staged_prior(stage(params)).clusters is not None
    params.data.gaussian_prior = PriorFitConfig(rank=500)
    with pytest.raises(ConfigError, match="rank is 500"):
        stage(params)
    with pytest.raises(DataError, match=r"nowhere/prior.safetensors: .* set data.gaussian_prior"):
        staged_prior(Path("nowhere"))


def test_a_bad_shard_stops_the_stage_and_keeps_the_rest(params: SimpleNamespace) -> None:
    Path("data/mine/train-000001.tar").write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"data/mine/train-000001\.tar is damaged"):
        stage(params)
    assert Path("artifacts/staged/train/train-000000.npy").is_file()


def test_a_dataset_that_was_never_built(params: SimpleNamespace) -> None:
    params.data.shards = Path("data/other")
    with pytest.raises(DataError, match=r"data/other/manifest\.json does not exist: .*components\.data\.build_dataset"):
        stage(params)
