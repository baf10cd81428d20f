from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import ConfigError, DataError
from harness.task import data
from harness.task.data import registry
from harness.task.data.originals import Originals

SETS = ["ag_news", "cifar10", "digits", "fashion_mnist", "sst2", "uci_har"]


def test_every_module_with_the_facts_of_a_data_set_is_found() -> None:
    assert data.names() == SETS


@pytest.mark.parametrize("name", SETS)
def test_facts_agree_with_each_other(name: str) -> None:
    info = data.info(name)
    assert info.name == name
    assert len(info.train_counts) == len(info.test_counts) == info.num_classes
    assert (info.vocabulary > 0) == (info.kind == "tokens")
    assert len(info.input_shape) == {"image": 3, "signal": 2, "tokens": 1}[info.kind]
    assert not info.natural_owners or sum(info.natural_owners) == info.train_samples
    assert info.bundled == (registry.module(name).ORIGINALS is None)


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="unknown data set 'fashion-mnist'; did you mean 'fashion_mnist'"):
        data.info("fashion-mnist")
    with pytest.raises(ConfigError, match="unknown data set 'x'; known: ag_news, cifar10"):
        data.load("x", None)


@pytest.mark.parametrize("name", [name for name in SETS if name != "digits"])
def test_without_a_data_folder_the_error_says_what_to_do(name: str) -> None:
    with pytest.raises(DataError, match="set AMMETER_DATA or --data DIR") as caught:
        data.load(name, None)
    fetchable = isinstance(registry.module(name).ORIGINALS, Originals)
    assert (f"`ammeter data fetch {name}`" in str(caught.value)) == fetchable


@pytest.mark.parametrize("name", [name for name in SETS if name != "digits"])
def test_missing_files_are_named_with_every_place_looked_at(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="data files missing") as caught:
        data.load(name, tmp_path)
    assert str(tmp_path) in str(caught.value)
    if name == "cifar10":
        for place in ("cifar10/cifar-10-batches-bin", "cifar-10-batches-bin"):
            assert f"{tmp_path / place} lacks data_batch_1.bin" in str(caught.value)


def test_a_bundled_set_needs_no_folder() -> None:
    assert data.load("digits", None).info.bundled
