"""Checkpoint folders: round trip, atomicity, refusals."""

import json
import os
from pathlib import Path

import pytest
import torch
from model_helpers import TINY, measure, normal, shaken
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from invfusion.errors import CheckpointError
from invfusion.models import checkpoint, load_denoiser, load_manifest, load_weights, save_denoiser

SIGMA = torch.tensor([0.1, 2.0])


def test_round_trip_is_exact(tmp_path: Path) -> None:
    denoiser, x = shaken(n_classes=2), normal(2, 3, 8, 8)
    save_denoiser(denoiser, tmp_path / "deep" / "model", {"git": "abc"})
    loaded = load_denoiser(tmp_path / "deep" / "model")
    assert loaded.config == denoiser.config
    assert not loaded.training
    assert all(p.requires_grad for p in loaded.parameters())
    assert torch.equal(loaded(x, SIGMA, measure(x)), denoiser(x, SIGMA, measure(x)))
    assert load_manifest(tmp_path / "deep" / "model") == {"git": "abc"}
    assert sorted(p.name for p in (tmp_path / "deep").iterdir()) == ["model"]


def test_saving_again_replaces_all(tmp_path: Path) -> None:
    save_denoiser(shaken(), tmp_path / "model", {"n": 1})
    save_denoiser(shaken(variant="palette"), tmp_path / "model", {"n": 2})
    assert load_denoiser(tmp_path / "model").variant == "palette"
    assert load_manifest(tmp_path / "model") == {"n": 2}


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("I/O error: no space")])
def test_full_disk_leaves_the_previous_intact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    save_denoiser(shaken(), tmp_path / "model", {"n": 1})

    def fail(tensors: dict[str, torch.Tensor], path: Path) -> None:
        path.write_bytes(b"half a file")
        raise error

    monkeypatch.setattr(checkpoint, "save_file", fail)
    with pytest.raises(CheckpointError, match=r"model: cannot save .* space"):
        save_denoiser(shaken(), tmp_path / "model", {"n": 2})
    assert load_manifest(tmp_path / "model") == {"n": 1}
    load_denoiser(tmp_path / "model")
    assert os.listdir(tmp_path) == ["model"]


def test_kill_between_the_two_renames_loses_nothing(tmp_path: Path) -> None:
    save_denoiser(shaken(), tmp_path / "model", {"n": 1})
    (tmp_path / "model").rename(tmp_path / ".model.previous")
    assert load_manifest(tmp_path / "model") == {"n": 1}
    save_denoiser(shaken(), tmp_path / "model", {"n": 2})
    assert load_manifest(tmp_path / "model") == {"n": 2}


def test_another_architecture_is_refused_by_its_first_keys(tmp_path: Path) -> None:
    save_denoiser(shaken(), tmp_path / "model", {})
    weights = tmp_path / "model" / "model.safetensors"
    with pytest.raises(CheckpointError, match=r"net\.patch_in\.weight: \(24, 6\) where the model has \(24, 3\)"):
        load_weights(shaken(variant="unconditional"), load_file(weights), source=str(weights))
    tensors = load_file(weights)
    del tensors["net.out_norm.scale"]
    save_file(tensors, weights)
    with pytest.raises(CheckpointError, match=r"another architecture \(net\.out_norm\.scale: missing"):
        load_denoiser(tmp_path / "model")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", None),
        ("config.json", "{"),
        ("config.json", '{"a": 1}'),
        ("model.safetensors", None),
        ("model.safetensors", "not a tensor file"),
        ("manifest.json", None),
        ("manifest.json", "{"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, name: str, content: str | None) -> None:
    save_denoiser(shaken(), tmp_path / "model", {})
    path = tmp_path / "model" / name
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(CheckpointError, match=name):
        load_manifest(tmp_path / "model") if "manifest" in name else load_denoiser(tmp_path / "model")


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere: no such checkpoint folder"):
        load_denoiser(tmp_path / "nowhere")


def test_config_file_holds_the_whole_architecture(tmp_path: Path) -> None:
    save_denoiser(shaken(), tmp_path / "model", {})
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config == json.loads(TINY.model_dump_json())
