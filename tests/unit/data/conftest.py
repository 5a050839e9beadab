from importlib.util import find_spec
from pathlib import Path

import pytest

# Where only the library is installed, what needs shards is left out.
collect_ignore_glob = [] if find_spec("webdataset") else ["test_[!o]*.py"]


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """A dataset folder: train 5 + 5, val 3 and test 3 images."""
    from noise_data import write_dataset

    return write_dataset(tmp_path / "dataset")


@pytest.fixture
def staged(dataset: Path, tmp_path: Path) -> Path:
    """The same dataset, staged."""
    from noise_data import SIZE

    from invfusion.data.staging import stage_dataset

    stage_dataset(dataset, tmp_path / "staged", SIZE)
    return tmp_path / "staged"
