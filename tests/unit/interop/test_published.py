"""Files of the published code become our models; what else may stand in them is refused, and never run."""

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from published_files import importable, published_state, write_network, write_state

from invfusion.errors import CheckpointError
from invfusion.interop.published import import_published
from invfusion.models import Denoiser, DenoiserConfig, LevelConfig, build_denoiser
from invfusion.rng import generator

TINY = DenoiserConfig(
    image_size=8,
    patch_size=1,
    levels=(LevelConfig(width=24, depth=1, kernel=3), LevelConfig(width=48, depth=1)),
    head_dim=8,
    mapping_width=16,
    mapping_depth=1,
    mapping_hidden=16,
)


@pytest.fixture
def trained() -> Denoiser:
    denoiser = build_denoiser(TINY)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator(0, "shake"))
    return denoiser


def assert_same(found: Denoiser, expected: Denoiser) -> None:
    for name, t in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], t), name


def test_the_average_of_a_training_state(trained: Denoiser, tmp_path: Path) -> None:
    ema = published_state(trained)
    path = write_state(tmp_path / "training-state-0008192.pt", ema, {k: 0 * t for k, t in ema.items()})
    denoiser, facts = import_published(path, TINY, "invfusion")
    assert_same(denoiser, trained)
    assert not denoiser.training
    assert facts["imported"] | {"sha256": ""} == {
        "file": path.name, "sha256": "", "format": "training state", "weights": "ema", "source": "noamelata/InvFusion",
        "images": 2**23,
    }  # fmt: skip


def test_a_pickled_network(trained: Denoiser, tmp_path: Path) -> None:
    path = write_network(tmp_path / "network-snapshot.pkl", published_state(trained))
    denoiser, facts = import_published(path, TINY, "invfusion")
    assert_same(denoiser, trained)
    assert (facts["imported"]["format"], facts["imported"]["weights"]) == ("network", "ema")


def test_half_precision_becomes_single(trained: Denoiser, tmp_path: Path) -> None:
    halves = {k: t if k.endswith("freqs") else t.half() for k, t in published_state(trained).items()}
    denoiser, _ = import_published(write_network(tmp_path / "a.pkl", halves), TINY, "invfusion")
    assert all(t.dtype == torch.float32 for t in denoiser.state_dict().values())


@pytest.mark.parametrize("asked", ["palette", "unconditional"])
def test_another_variant(trained: Denoiser, tmp_path: Path, asked: Any) -> None:
    path = write_state(tmp_path / "a.pt", published_state(trained))
    with pytest.raises(CheckpointError, match=f"variant 'invfusion', not '{asked}'"):
        import_published(path, TINY, asked)
    palette = write_state(tmp_path / "b.pt", published_state(build_denoiser(TINY, "palette")))
    with pytest.raises(CheckpointError, match="variant 'palette', not 'invfusion'"):
        import_published(palette, TINY, "invfusion")


def test_another_architecture_is_told_by_our_names(trained: Denoiser, tmp_path: Path) -> None:
    path = write_state(tmp_path / "a.pt", published_state(trained))
    wider = TINY.model_copy(update={"mapping_width": 32})
    with pytest.raises(CheckpointError, match=r"net\.conditioning\.time_.* where the model has .* name the preset"):
        import_published(path, wider, "invfusion")


def test_values_that_no_training_leaves(trained: Denoiser, tmp_path: Path) -> None:
    state = published_state(trained)
    state["unet.out_norm.scale"][3] = torch.nan
    with pytest.raises(CheckpointError, match=r"net\.out_norm\.scale hold infinite or not-a-number"):
        import_published(write_state(tmp_path / "a.pt", state), TINY, "invfusion")


def test_other_rotary_frequencies(trained: Denoiser, tmp_path: Path) -> None:
    state = published_state(trained)
    state["unet.mid_level.0.attn.self_attn.pos_emb.freqs"] *= 1.01
    with pytest.raises(CheckpointError, match=r"net\.middle\.0\.attention\.rope\.frequencies differ by 1\.0%"):
        import_published(write_state(tmp_path / "a.pt", state), TINY, "invfusion")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("write", [write_state, write_network])
def test_a_truncated_file(trained: Denoiser, tmp_path: Path, write: Any, share: float) -> None:
    path = write(tmp_path / "a", published_state(trained))
    os.truncate(path, int(share * path.stat().st_size))
    with pytest.raises(CheckpointError, match=r"cannot be read to its end .* damaged or truncated"):
        import_published(path, TINY, "invfusion")


class Hostile:
    """Runs a command when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("write", ["torch", "pickle"])
def test_a_hostile_file_is_refused_and_not_run(tmp_path: Path, write: str) -> None:
    path, mark = tmp_path / "a", tmp_path / "was-run"
    content = {"state": None, "ema": {"unet.out_norm.scale": Hostile(mark)}}
    if write == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    with pytest.raises(CheckpointError, match=r"would call 'posix\.system', which no network needs"):
        import_published(path, TINY, "invfusion")
    assert not mark.exists()


@pytest.mark.parametrize(
    "content",
    [{"ema": {}}, {"a": 1}, [1, 2], "text", {"ema": {"x": 3}}, {"ema": {"unet.out_norm.scale": torch.ones(2)}}],
)
def test_what_is_no_network(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "a"
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=r"holds no network|another architecture"):
        import_published(path, TINY, "invfusion")
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(CheckpointError, match=r"holds no network|another architecture"):
        import_published(path, TINY, "invfusion")


class Odd:
    """An object of the published code whose state is not what a module has."""

    def __init__(self, state: Any) -> None:
        self.state = state

    def __reduce__(self) -> Any:
        return _reconstruct_persistent_obj, ({"state": self.state},)


def _reconstruct_persistent_obj(_: Any) -> None: ...


@pytest.mark.parametrize(
    "state",
    [
        {"_parameters": [1]},
        {"_modules": [1], "_parameters": {}},
        {"_parameters": {"a": torch.ones(2)}, "_non_persistent_buffers_set": 3},
        3,
    ],
)
def test_a_network_of_odd_parts(tmp_path: Path, state: Any) -> None:
    path = tmp_path / "a.pkl"
    names = {"_reconstruct_persistent_obj": _reconstruct_persistent_obj}
    with importable(torch_utils={}, torch_utils__persistence=names):
        path.write_bytes(pickle.dumps({"ema": Odd(state)}))
    with pytest.raises(CheckpointError, match=r"a\.pkl: (not a file that the published code writes|holds no network)"):
        import_published(path, TINY, "invfusion")


@pytest.mark.parametrize("tensor", [torch.ones(2, device="meta"), torch.ones(2).to_sparse()])
def test_tensors_without_their_numbers(tmp_path: Path, tensor: torch.Tensor) -> None:
    torch.save({"ema": {"unet.out_norm.scale": tensor}}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="holds no network"):
        import_published(tmp_path / "a.pt", TINY, "invfusion")


def test_pickled_otherwise_than_torch_does_by_itself(trained: Denoiser, tmp_path: Path) -> None:
    torch.save({"ema": published_state(trained)}, tmp_path / "a.pt", pickle_protocol=5)
    with pytest.raises(CheckpointError, match="safe reader does not know how it is written"):
        import_published(tmp_path / "a.pt", TINY, "invfusion")


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        import_published(tmp_path / "nowhere.pt", TINY, "invfusion")
