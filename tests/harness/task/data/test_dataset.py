from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from harness.errors import DataError
from harness.task.data.dataset import DataInfo, Dataset, Scale, Split

IMAGES = DataInfo(
    name="tiny",
    title="Tiny",
    kind="image",
    input_shape=(2, 2, 2),
    num_classes=2,
    train_counts=(2, 1),
    test_counts=(1, 0),
    vocabulary=0,
    natural_owners=(),
    licence="none",
    citation="none",
    bundled=True,
)
TOKENS = replace(IMAGES, kind="tokens", input_shape=(3,), vocabulary=5)
SCALE = Scale(mean=(0.5, 0.25), std=(0.5, 0.125), unit=8.0)


def images(samples: int) -> torch.Tensor:
    return torch.arange(samples * 8, dtype=torch.uint8).reshape(samples, 2, 2, 2)


def image_set(**change: object) -> Dataset:
    parts = {
        "info": IMAGES,
        "train": Split(images(3), torch.tensor([0, 1, 0])),
        "test": Split(images(1), torch.tensor([0])),
        "scale": SCALE,
    }
    return Dataset(**{**parts, **change})  # type: ignore[arg-type]


def test_counts_add_up() -> None:
    assert IMAGES.train_samples == 3
    assert IMAGES.test_samples == 1


def test_prepare_normalises_each_channel() -> None:
    dataset = image_set()
    out = dataset.prepare(dataset.train.inputs)
    assert out.dtype == torch.float32
    raw = dataset.train.inputs.double()
    torch.testing.assert_close(out[:, 0].double(), (raw[:, 0] / 8 - 0.5) / 0.5)
    torch.testing.assert_close(out[:, 1].double(), (raw[:, 1] / 8 - 0.25) / 0.125)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_prepare_leaves_its_argument_alone(dtype: torch.dtype) -> None:
    dataset = image_set()
    inputs = dataset.train.inputs.to(dtype)
    before = inputs.clone()
    dataset.prepare(inputs)
    assert torch.equal(inputs, before)


def test_prepare_works_where_the_batch_is() -> None:
    out = image_set().prepare(images(3).to("meta"))
    assert out.device.type == "meta"
    assert out.shape == (3, 2, 2, 2)


def test_prepare_makes_its_constants_once() -> None:
    dataset = image_set()
    dataset.prepare(images(1))
    first = dataset._constants[torch.device("cpu")]
    dataset.prepare(images(2))
    assert dataset._constants[torch.device("cpu")] is first
    assert len(dataset._constants) == 1


def test_prepare_widens_tokens() -> None:
    tokens = torch.tensor([[0, 1, 4]] * 3, dtype=torch.int32)
    labels = torch.tensor([0, 1, 0])
    dataset = Dataset(TOKENS, Split(tokens, labels), Split(tokens[:1], labels[:1]), None)
    assert dataset.prepare(tokens).dtype == torch.int64
    assert dataset.prepare(tokens).tolist() == tokens.tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": Split(images(2), torch.tensor([0, 1]))}, r"train split: inputs have shape \(2, 2, 2, 2\)"),
        ({"train": Split(images(3).float(), torch.tensor([0, 1, 0]))}, "torch.float32"),
        ({"train": Split(images(3), torch.tensor([0, 1, 0]).int())}, "labels torch.int32"),
        ({"train": Split(images(3), torch.tensor([0, 1]))}, "2 labels for 3 samples"),
        ({"train": Split(images(3), torch.tensor([0, 1, 2]))}, "labels from 0 to 2, expected 0 to 1"),
        ({"train": Split(images(3), torch.tensor([0, -1, 0]))}, "labels from -1"),
        ({"test": Split(images(1), torch.tensor([1]))}, r"per class are \(0, 1\), expected \(1, 0\)"),
        (
            {"train": Split(images(3), torch.tensor([0, 1, 0]), torch.tensor([0, 0, 1]))},
            r"per owner are \(2, 1\), expected \(\)",
        ),
    ],
)
def test_samples_that_contradict_the_facts_are_refused(change: dict[str, Split], message: str) -> None:
    with pytest.raises(DataError, match=message):
        image_set(**change)


@pytest.mark.parametrize("token", [-1, 5])
def test_token_ids_outside_the_vocabulary_are_refused(token: int) -> None:
    tokens = torch.tensor([[0, 1, token]] * 3, dtype=torch.int32)
    labels = torch.tensor([0, 1, 0])
    with pytest.raises(DataError, match="expected 0 to 4"):
        Dataset(TOKENS, Split(tokens, labels), Split(tokens[:1], labels[:1]), None)
