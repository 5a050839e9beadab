from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from components.data.build_dataset import main
from invfusion.data.images import open_image, to_array
from invfusion.data.manifest import read_manifest
from invfusion.data.shards import read_shard

TRACKED = Path(__file__).parents[2] / "data" / "digits16"


def pixels_of(folder: Path) -> dict[str, np.ndarray]:
    """Pixels by split and key."""
    return {
        f"{entry.split}/{sample.key}/{sample.label}": to_array(open_image(sample.image, sample.key))
        for entry in read_manifest(folder).shards
        for sample in read_shard(folder / entry.file)
    }


@pytest.mark.skipif(not TRACKED.is_dir(), reason="the tracked dataset is not here: `dvc pull`")
def test_rebuilding_gives_the_tracked_pixels(tmp_path: Path) -> None:
    """Not the tracked bytes: PNG compression may differ between versions of zlib."""
    main(["--source", "digits", "--out", str(tmp_path / "digits16"), "--size", "16"])
    rebuilt, tracked = pixels_of(tmp_path / "digits16"), pixels_of(TRACKED)
    assert len(tracked) == 1797
    assert list(rebuilt) == list(tracked)
    assert all(np.array_equal(rebuilt[key], tracked[key]) for key in tracked)


def test_a_folder_of_photographs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for i in range(6):
        path = tmp_path / "photos" / ("train" if i else "test") / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40 + i, 30), "teal").save(path)
    (tmp_path / "photos" / "train" / "list.csv").write_text("a,b")
    options = ["--source", "folder", "--path", str(tmp_path / "photos"), "--out", str(tmp_path / "mine")]
    with caplog.at_level("INFO"):
        main([*options, "--size", "16", "--on-error", "skip", "--licence", "my own"])
    manifest = read_manifest(tmp_path / "mine")
    assert manifest.n_samples == {"train": 5, "val": 0, "test": 1}
    assert (manifest.name, manifest.licence, manifest.n_skipped) == ("mine", "my own", 1)
    assert "list.csv is not an image" in caplog.text
    assert "the split 'val' is empty" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--source", "folder", "--size", "16"], "--path: Field required"),
        (["--source", "digits", "--size", "16", "--labels"], "--labels: takes no such option"),
        (["--source", "digits", "--size", "0"], "--size: Input should be greater"),
        (["--source", "folder", "--path", "nowhere", "--size", "16"], "nowhere is not a folder"),
    ],
)
def test_wrong_options_are_named(tmp_path: Path, options: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=f"^error: {message}"):
        main([*options, "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
