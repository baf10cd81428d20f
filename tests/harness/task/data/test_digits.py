from __future__ import annotations

import hashlib

import pytest
import torch

from harness.task.data import digits


def test_digits_are_what_the_facts_say() -> None:
    dataset = digits.load(None)
    assert dataset.info.train_samples + dataset.info.test_samples == 1797
    assert int(dataset.train.inputs.max()) == 16
    prepared = dataset.prepare(dataset.train.inputs)
    assert prepared.shape == (1438, 1, 8, 8)
    assert prepared.mean().item() == pytest.approx(0, abs=1e-3)
    assert prepared.std().item() == pytest.approx(1, abs=1e-3)


def test_the_split_is_the_same_everywhere_and_every_time() -> None:
    first, second = digits.load(None), digits.load(None)
    assert torch.equal(first.test.inputs, second.test.inputs)
    digest = hashlib.sha256(first.test.inputs.numpy().tobytes() + first.test.labels.numpy().tobytes())
    assert digest.hexdigest()[:16] == "d6a817873476b50b"
