import pickle
from pathlib import Path

import pytest
import torch

from invfusion.data import Batch, StagedDataset, TrainingStream
from invfusion.errors import DataError


def same(a: Batch, b: Batch) -> bool:
    return torch.equal(a.images, b.images) and a.keys == b.keys and torch.equal(a.labels, b.labels)


def test_a_batch_joins_images_keys_and_labels(staged: Path) -> None:
    dataset = StagedDataset(staged, "train")
    batch = TrainingStream(dataset, seed=0, micro_batch_size=4).batch(0)
    assert batch.images.shape == (4, 3, 8, 8)
    assert batch.images.dtype == torch.uint8
    for image, key, label in zip(batch.images, batch.keys, batch.labels, strict=True):
        position = dataset.keys.index(key)
        assert torch.equal(image, dataset.read([position])[0])
        assert label == position % 2


def test_any_starting_point_gives_the_same_stream(staged: Path) -> None:
    stream = TrainingStream(StagedDataset(staged, "train"), seed=3, micro_batch_size=4)
    whole = stream.batch(0, 40)
    assert same(stream.batch(26, 4), Batch(whole.images[26:30], whole.keys[26:30], whole.labels[26:30]))
    assert [b.keys for b in stream.iterate(8, 24)] == [b.keys for b in stream.iterate(0, 24)][2:]


@pytest.mark.parametrize("n_workers", [0, 1, 2])
def test_workers_change_nothing(staged: Path, n_workers: int) -> None:
    dataset = StagedDataset(staged, "train")
    batches = list(TrainingStream(dataset, 1, 4, n_workers).iterate(4, 40))
    expected = [TrainingStream(dataset, 1, 4).batch(start) for start in range(4, 40, 4)]
    assert len(batches) == 9
    assert all(same(a, b) for a, b in zip(batches, expected, strict=True))


def test_ranks_share_the_stream_without_overlap(staged: Path) -> None:
    stream = TrainingStream(StagedDataset(staged, "train"), seed=0, micro_batch_size=2)
    ranks = [[b.keys for b in stream.iterate(6, 18, step=2, offset=rank)] for rank in range(2)]
    interleaved = [keys for pair in zip(*ranks, strict=True) for keys in pair]
    assert interleaved == [b.keys for b in stream.iterate(6, 18)]


def test_iterating_leaves_the_global_generator_alone(staged: Path) -> None:
    before = torch.get_rng_state()
    list(TrainingStream(StagedDataset(staged, "train"), 0, 4).iterate(0, 8))
    assert torch.equal(before, torch.get_rng_state())


def test_reading_crosses_shards_and_keeps_the_order(staged: Path) -> None:
    dataset = StagedDataset(staged, "train")
    everything = dataset.read(range(len(dataset)))
    assert torch.equal(dataset.read([9, 0, 4, 5]), everything[[9, 0, 4, 5]])
    assert dataset.keys[4:6] == ["train/04", "train/05"]
    with pytest.raises(IndexError, match="10"):
        dataset.read([10])


def test_the_digest_tells_contents_apart(staged: Path) -> None:
    train, val = StagedDataset(staged, "train"), StagedDataset(staged, "val")
    assert train.digest == StagedDataset(staged, "train").digest
    assert len(train.digest) == 64
    assert train.digest != val.digest


def test_a_dataset_travels_to_workers_as_its_path(staged: Path) -> None:
    dataset = StagedDataset(staged, "train")
    packed = pickle.dumps(dataset)
    assert len(packed) < 500
    assert torch.equal(pickle.loads(packed).read([3]), dataset.read([3]))


def test_an_unstaged_dataset_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"manifest\.json does not exist: the stage step"):
        StagedDataset(tmp_path, "train")


def test_an_unknown_split_names_the_splits(staged: Path) -> None:
    with pytest.raises(DataError, match=r"no 'dev' samples; its splits are train \(10\), val \(3\), test \(3\)"):
        StagedDataset(staged, "dev")


@pytest.mark.parametrize("file", ["manifest.json", "train/train-000001.json", "train/train-000001.npy"])
def test_a_damaged_staged_file_is_named(staged: Path, file: str) -> None:
    (staged / file).write_bytes(b"\x93NUMPY?")
    with pytest.raises(DataError, match=f"{file} is .*damaged: run the stage step again"):
        StagedDataset(staged, "train")
