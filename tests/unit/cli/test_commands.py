"""The command `invfusion`, run in this process."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import invfusion
from invfusion.cli.main import INTERRUPTED, main
from invfusion.operators import Bayer, Blur, spec_to_json
from invfusion.restoration.photos import load_photos
from invfusion.rng import generator

SIZE = (40, 36)
OWN_OPERATORS = """
from invfusion.operators import MaskOperator
import torch

def Known(shape):
    return MaskOperator(shape, torch.ones(1, 1, *shape[1:]))

def Broken(shape):
    raise ValueError("no luck")
"""


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    x = load_photos().law_of((1, 3, *SIZE)).sample([generator(3, "x")])
    return ((x[0].clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()


@pytest.fixture
def place(tmp_path: Path, pixels: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a picture, a mask and a kernel."""
    monkeypatch.chdir(tmp_path)
    Image.fromarray(pixels).save("clean.png")
    mask = np.zeros(SIZE, np.uint8)
    mask[10:15, 5:30] = 255
    Image.fromarray(mask).save("mask.png")
    kernel = np.zeros((5, 5), np.uint8)
    kernel[2, :] = 100
    Image.fromarray(kernel).save("kernel.png")
    np.save("flat.npy", np.zeros(SIZE))
    (tmp_path / "damaged.npy").write_bytes(b"PK" + bytes(30))
    with (tmp_path / "archive.npy").open("wb") as archive:
        np.savez(archive, a=np.zeros(3))
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "operator.py").write_text(OWN_OPERATORS)
    return tmp_path


def read(path: str | Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2)))


def test_known_pixels_are_unchanged_to_the_bit(place: Path, pixels: np.ndarray) -> None:
    assert main(["degrade", "clean.png", "-o", "holes.png", "--mask", "mask.png"]) == 0
    assert main(["restore", "holes.png", "-o", "out.png", "--mask", "mask.png", "--method", "mmse"]) == 0
    known = read("mask.png") == 0
    assert np.array_equal(read("out.png")[known], pixels[known])
    assert not np.array_equal(read("out.png")[~known], read("holes.png")[~known])
    record = json.loads((place / "out.png.json").read_text())
    assert record["operator"]["kind"] == "inpainting"
    assert record["model"]["name"] == "photos"
    assert len(record["model"]["sha256"]) == 64
    assert record["residual"] == [0]


def test_blur_is_undone_within_the_frame(place: Path, pixels: np.ndarray) -> None:
    task = ["--blur", "kernel.png", "--boundary", "valid", "--sigma", "0.01"]
    assert main(["degrade", "clean.png", "-o", "blurred.png", *task]) == 0
    assert read("blurred.png").shape == (36, 32, 3)
    assert main(["restore", "blurred.png", "-o", "out.png", *task, "--method", "mmse", "--quiet"]) == 0
    frame = pixels[2:-2, 2:-2]
    assert read("out.png").shape == frame.shape
    assert psnr(read("out.png"), frame) > psnr(read("blurred.png"), frame) + 2


def test_enlarging_beats_bicubic(place: Path, pixels: np.ndarray) -> None:
    assert main(["degrade", "clean.png", "-o", "small.png", "--scale", "2"]) == 0
    assert (
        main(["restore", "small.png", "-o", "out.png", "--scale", "2", "--filter", "bicubic", "--method", "mmse"]) == 0
    )
    bicubic = np.asarray(Image.open("small.png").resize(SIZE[::-1], Image.Resampling.BICUBIC))
    assert psnr(read("out.png"), pixels) > psnr(bicubic, pixels)


def test_samples_their_mean_and_their_spread(place: Path) -> None:
    arguments = ["restore", "clean.png", "-o", "out.png", "--mask", "mask.png", "--samples", "3", "--std", "std.png"]
    assert main(arguments) == 0
    samples = [read(f"out-{i}.png").astype(float) for i in (1, 2, 3)]
    clean, missing = read("clean.png"), read("mask.png") > 0
    assert psnr(read("out.png")[missing], clean[missing]) > max(psnr(s[missing], clean[missing]) for s in samples)
    assert read("std.png").max() == 255
    assert read("std.png")[0, 0].max() == 0
    assert json.loads((place / "out.png.json").read_text())["std_white"] > 0


def test_folders_and_patterns(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = place / "in"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        Image.open("clean.png").save(folder / name)
    (folder / "bad.png").write_text("no picture")
    assert main(["restore", "in", "-o", "restored", "--sigma", "0.1", "--method", "mmse"]) == 1
    assert sorted(p.name for p in (place / "restored").iterdir()) == ["a.png", "a.png.json", "b.png", "b.png.json"]
    assert "1 of 3 pictures could not be restored" in capsys.readouterr().err
    assert main(["restore", "in/[ab].png", "-o", "two/", "--sigma", "0.1", "--method", "mmse", "--quiet"]) == 0
    assert (place / "two" / "b.png").exists()


def test_grey_16_bit_pictures_stay_so(place: Path, pixels: np.ndarray) -> None:
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save("grey.png")
    assert main(["restore", "grey.png", "-o", "out.png", "--mask", "mask.png", "--method", "mmse", "--quiet"]) == 0
    out = read("out.png")
    assert out.dtype == np.uint16
    known = read("mask.png") == 0
    assert np.array_equal(out[known], read("grey.png")[known])


def test_an_operator_of_ones_own(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "my_ops.py").write_text(
        "from invfusion.operators import LinearOperator\n"
        "def Mirror(image_shape):\n"
        "    return LinearOperator.from_functions(lambda x: x.flip(-1), image_shape=image_shape)\n"
    )
    arguments = ["restore", "clean.png", "-o", "out.png", "--operator", "my_ops.py:Mirror", "--method", "mmse"]
    assert main([*arguments, "--sigma", "0.001"]) == 0
    assert psnr(read("out.png"), read("clean.png")[:, ::-1]) > 35
    assert main(["check", "my_ops.py:Mirror"]) == 0
    assert "keeps its contract" in capsys.readouterr().out
    assert main(["restore", "clean.png", "-o", "out.png", "--operator", "my_ops.py:Missing"]) == 1


def test_measurements_that_are_a_row_of_numbers(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They say nothing of the shape of the images, channels included."""
    (place / "my_ops.py").write_text(
        "from invfusion.operators import LinearOperator\n"
        "def RowSums(image_shape):\n"
        "    return LinearOperator.from_functions(lambda x: x.sum(-1).flatten(-2), image_shape=image_shape)\n"
    )
    np.save(place / "y.npy", np.zeros(3 * 12, np.float32))
    arguments = ["restore", "y.npy", "-o", "out.png", "--operator", "my_ops.py:RowSums", "--sigma", "0.1"]
    assert main([*arguments, "--method", "mmse", "--image-size", "3x12x16"]) == 0
    assert read("out.png").shape == (12, 16, 3)
    for unclear in ([], ["--image-size", "12x16"], ["--image-size", "12"]):
        assert main([*arguments, *unclear]) == 1
        assert "3x480x640" in capsys.readouterr().err


def test_models_are_listed(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    assert capsys.readouterr().out.startswith("photos  Gaussian model")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.png", "-o", "o.png"], "missing.png: cannot be read"),
        (["clean.png", "-o", "o.xyz"], "names no format"),
        (["clean.png", "-o", "clean.png"], "would take the place of an input"),
        (["clean.png", "-o", "o.png", "--mask", "clean.png"], None),
        (["kernel.png", "-o", "o.png", "--mask", "mask.png"], "the mask is 40x36"),
        (["clean.png", "-o", "o.png", "--scale", "0"], "--scale"),
        (["clean.png", "-o", "o.png", "--sigma", "much"], "--sigma"),
        (["clean.png", "-o", "o.png", "--sigma", "nan"], "sigma_y"),
        (["clean.png", "-o", "o.png", "--method", "magic"], "unknown method"),
        (["clean.png", "-o", "o.png", "--model", "nowhere"], "no such checkpoint"),
        (["clean.png", "-o", "o.png", "--blur", "missing.npy"], "missing.npy"),
        (["clean.png", "-o", "o.png", "--std", "s.png"], "--std needs"),
        (["clean.png", "-o", "o.png", "--operator", "nowhere.py:A"], "no such Python file"),
        (["clean.png", "-o", "o.png", "--device", "cuda:99"], "not available"),
        (["flat.npy", "-o", "o.png", "--mask", "mask.png"], "is of pictures (C, H, W)"),
        (["clean.png", "-o", "o.png", "--blur", "archive.npy"], "an archive"),
        (["archive.npy", "-o", "o.png"], "an archive"),
        (["clean.png", "-o", "o.webp", "--scale", "500"], "do not fit into this format"),
        (["clean.png", "-o", "o.png", "--samples", "2", "--std", "clean.png"], "clean.png would take the place"),
        (["clean.png", "-o", "mask.png", "--mask", "mask.png"], "mask.png would take the place"),
        (["clean.png", "-o", "o.png", "--blur", "damaged.npy"], "not a table of numbers"),
        (["o-1.png", "-o", "o.png", "--samples", "2"], "o-1.png would take the place"),
        (["clean.png", "-o", "o.png", "--operator", "own/operator.py:Broken"], "no luck"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    place: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str | None
) -> None:
    before = sorted(p.name for p in place.iterdir())
    clean = (place / "clean.png").read_bytes()
    status = main(["restore", *arguments, "--quiet"])
    if message is None:  # a picture is a mask too
        return
    assert status == 1
    err = capsys.readouterr().err
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert sorted(p.name for p in place.iterdir()) == before
    assert (place / "clean.png").read_bytes() == clean


def test_interrupt_leaves_nothing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("invfusion.cli.restore.restore_picture", interrupted)
    assert main(["restore", "clean.png", "-o", "o.png", "--mask", "mask.png"]) == INTERRUPTED
    assert not (place / "o.png").exists()


def test_a_checkpoint_restores(place: Path) -> None:
    from invfusion.models import DenoiserConfig, LevelConfig, build_denoiser, save_denoiser

    config = DenoiserConfig(
        image_size=8, patch_size=2, levels=(LevelConfig(width=24, depth=1, kernel=3),), head_dim=8, mapping_width=16
    )
    save_denoiser(build_denoiser(config, "invfusion"), place / "model", {})
    arguments = ["restore", "clean.png", "-o", "out.png", "--mask", "mask.png", "--model", "model", "--method", "mmse"]
    assert main([*arguments, "--tile", "16"]) == 0
    known = read("mask.png") == 0
    assert np.array_equal(read("out.png")[known], read("clean.png")[known])
    assert invfusion.load_image("out.png").dtype == torch.float32


def test_a_mosaic_comes_back_in_colours(place: Path, pixels: np.ndarray) -> None:
    (place / "bayer.json").write_text(spec_to_json(Bayer((3, *SIZE)).to_spec()))
    assert main(["degrade", "clean.png", "-o", "mosaic.png", "--operator", "bayer.json"]) == 0
    assert read("mosaic.png").shape == SIZE
    assert main(["restore", "mosaic.png", "-o", "out.png", "--operator", "bayer.json", "--quiet"]) == 0
    assert psnr(read("out.png"), pixels) > 30
    # A grey picture stays one.
    assert main(["restore", "mosaic.png", "-o", "grey.png", "--sigma", "0.1", "--quiet"]) == 0
    assert read("grey.png").shape == SIZE


def test_a_file_named_as_one_of_pythons_own_takes_no_ones_place(place: Path) -> None:
    before = sys.modules["operator"]
    assert main(["restore", "clean.png", "-o", "o.png", "--operator", "own/operator.py:Known", "--quiet"]) == 0
    assert sys.modules["operator"] is before


def test_a_grey_picture_under_an_operator_of_colours_stays_grey(place: Path) -> None:
    Image.open("clean.png").convert("L").save("grey.png")
    (place / "blur.json").write_text(spec_to_json(Blur((3, *SIZE), torch.ones(1, 3) / 3, "reflect").to_spec()))
    assert main(["restore", "grey.png", "-o", "o.png", "--operator", "blur.json", "--sigma", "0.05", "--quiet"]) == 0
    assert read("o.png").shape == SIZE


def test_degrade_does_not_replace_what_it_reads(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (place / "clean.png").read_bytes()
    assert main(["degrade", "clean.png", "-o", "clean.png"]) == 1
    assert "would take the place" in capsys.readouterr().err
    assert (place / "clean.png").read_bytes() == before
