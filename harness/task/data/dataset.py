"""What a data set is: its hard facts (`DataInfo`), its samples (`Split`) and how a batch is normalised."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from harness.errors import DataError


@dataclass(frozen=True)
class DataInfo:
    """Facts of a data set that need no files on disk; `Dataset` checks the files against them.

    `input_shape` is one sample as the model sees it, channels first: (C, H, W) for images, (channels, steps)
    for signals, (length,) for tokens. `train_counts` and `test_counts` are samples per class. `vocabulary` is
    the number of token ids, 0 unless `kind` is "tokens". `natural_owners` is the number of training samples
    of each person who produced them, () where the set knows none. `bundled`: comes with an installed package.
    """

    name: str
    title: str
    kind: Literal["image", "tokens", "signal"]
    input_shape: tuple[int, ...]
    num_classes: int
    train_counts: tuple[int, ...]
    test_counts: tuple[int, ...]
    vocabulary: int
    natural_owners: tuple[int, ...]
    licence: str
    citation: str
    bundled: bool

    @property
    def train_samples(self) -> int:
        """Number of training samples."""
        return sum(self.train_counts)

    @property
    def test_samples(self) -> int:
        """Number of test samples."""
        return sum(self.test_counts)


@dataclass(frozen=True, eq=False)
class Split:
    """Raw samples of one split, as stored: small, and turned into numbers batch by batch by `prepare`.

    `inputs`: uint8 [N, C, H, W] images, int32 [N, L] tokens, int16 [N, channels, steps] signals.
    `labels`: int64 [N]. `owners`: int64 [N], the person behind each sample, or None. In train, owner k has
    `DataInfo.natural_owners[k]` samples; people who are only in test are numbered after those.
    """

    inputs: Tensor
    labels: Tensor
    owners: Tensor | None = None


@dataclass(frozen=True)
class Scale:
    """Mean and standard deviation per channel of the training split, in units of `unit` raw steps."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    unit: float = 1.0


_RAW_DTYPE = {"image": torch.uint8, "tokens": torch.int32, "signal": torch.int16}


@dataclass(frozen=True, eq=False)
class Dataset:
    """A loaded data set. `scale` is None for tokens, which are not normalised.

    Raises DataError if the samples are not what `info` says: shape, dtype, samples per class, owners, ids.
    """

    info: DataInfo
    train: Split
    test: Split
    scale: Scale | None
    _constants: dict[torch.device, tuple[Tensor, Tensor]] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        _check(self.info, "train", self.train, self.info.train_counts)
        _check(self.info, "test", self.test, self.info.test_counts)
        _check_owners(self.info, self.train)
        if self.scale is not None:
            self._constants_on(torch.device("cpu"), self.scale)

    def prepare(self, inputs: Tensor) -> Tensor:
        """Turn a raw batch [B, ...] into the model's input [B, *info.input_shape]; `inputs` is not changed.

        Images and signals: float32 with mean 0 and standard deviation 1 per channel over the training split.
        Tokens: int64 ids. The result is on the device of `inputs`.
        """
        if self.scale is None:
            return inputs.to(torch.int64)
        mean, per_std = self._constants_on(inputs.device, self.scale)
        return inputs.to(torch.float32, copy=True).sub_(mean).mul_(per_std)

    def _constants_on(self, device: torch.device, scale: Scale) -> tuple[Tensor, Tensor]:
        """Mean and 1/std in raw steps on `device`, shaped to broadcast over a batch; made once per device."""
        if device not in self._constants:
            shape = (len(scale.mean),) + (1,) * (len(self.info.input_shape) - 1)
            mean = [scale.unit * value for value in scale.mean]
            per_std = [1.0 / (scale.unit * value) for value in scale.std]
            self._constants[device] = (
                torch.tensor(mean, dtype=torch.float32, device=device).reshape(shape),
                torch.tensor(per_std, dtype=torch.float32, device=device).reshape(shape),
            )
        return self._constants[device]


def _check(info: DataInfo, split_name: str, split: Split, counts: tuple[int, ...]) -> None:
    where = f"data set {info.name!r}, {split_name} split"
    samples = sum(counts)
    expected_shape = (samples, *info.input_shape)
    if tuple(split.inputs.shape) != expected_shape:
        raise DataError(
            f"{where}: inputs have shape {tuple(split.inputs.shape)}, expected {expected_shape}; "
            "the files are not the published ones, get them again"
        )
    if split.inputs.dtype != _RAW_DTYPE[info.kind] or split.labels.dtype != torch.int64:
        raise DataError(
            f"{where}: inputs are {split.inputs.dtype} and labels {split.labels.dtype}, expected "
            f"{_RAW_DTYPE[info.kind]} and torch.int64; the data set's module must convert them"
        )
    if tuple(split.labels.shape) != (samples,):
        raise DataError(f"{where}: {math.prod(split.labels.shape)} labels for {samples} samples")
    if samples and not 0 <= int(split.labels.min()) <= int(split.labels.max()) < info.num_classes:
        raise DataError(
            f"{where}: labels from {int(split.labels.min())} to {int(split.labels.max())}, "
            f"expected 0 to {info.num_classes - 1}; the files are damaged, get them again"
        )
    found = tuple(torch.bincount(split.labels, minlength=info.num_classes).tolist())
    if found != counts:
        raise DataError(
            f"{where}: samples per class are {found}, expected {counts}; "
            "the files are not the published ones, get them again"
        )
    if info.kind == "tokens" and samples:
        low, high = int(split.inputs.min()), int(split.inputs.max())
        if low < 0 or high >= info.vocabulary:
            raise DataError(
                f"{where}: token ids from {low} to {high}, expected 0 to {info.vocabulary - 1}; "
                "the files are not the published ones, get them again"
            )


def _check_owners(info: DataInfo, train: Split) -> None:
    found: tuple[int, ...] = ()
    if train.owners is not None:
        found = tuple(torch.bincount(train.owners).tolist())
    if found != info.natural_owners:
        raise DataError(
            f"data set {info.name!r}, train split: samples per owner are {found}, "
            f"expected {info.natural_owners}; the files are not the published ones, get them again"
        )
