"""harness/task/fingerprint.py: equal for equal bits, and for nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from harness.task.fingerprint import fingerprint


def weights() -> torch.Tensor:
    return torch.arange(12, dtype=torch.float32).reshape(3, 4)


def test_it_depends_on_the_bits_alone_not_on_the_object_or_its_layout():
    base = fingerprint({"block": weights()})
    assert len(base) == 16
    assert int(base, 16) >= 0
    assert fingerprint({"block": weights().clone()}) == base
    assert fingerprint({"block": weights().T.contiguous().T}) == base
    assert fingerprint({"block": weights().requires_grad_()}) == base
    assert fingerprint({"block": torch._lazy_clone(weights())}) == base


def test_every_bit_counts():
    changed = weights()
    seen = {fingerprint(changed)}
    for position in range(12):
        changed.view(-1).view(torch.int32)[position] ^= 1
        seen.add(fingerprint(changed))
    assert len(seen) == 13
    assert fingerprint(torch.tensor(0.0)) != fingerprint(torch.tensor(-0.0))


def test_shape_and_type_and_order_count():
    one, other = torch.zeros(4), torch.ones(4)
    found = [
        fingerprint(one),
        fingerprint(one.reshape(2, 2)),
        fingerprint(one.int()),
        fingerprint(one.half().repeat(2)),
        fingerprint((one, other)),
        fingerprint((other, one)),
        fingerprint(()),
    ]
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool])
def test_every_type_that_weights_have_has_one(dtype: torch.dtype):
    assert fingerprint(torch.zeros(3, dtype=dtype)) == fingerprint([torch.zeros(3, dtype=dtype)])
    assert fingerprint(torch.zeros(0, 5, dtype=dtype)) != fingerprint(torch.zeros(5, 0, dtype=dtype))


def test_what_is_no_tensor_does_not_count_and_nothing_is_changed():
    values = weights()
    assert fingerprint({"block": values, "samples": 3}) == fingerprint({"block": values, "samples": 4})
    assert values._version == 0


@pytest.mark.slow
def test_it_is_the_same_in_another_process():
    code = (
        "import torch; from harness.task.fingerprint import fingerprint; "
        "print(fingerprint({'block': torch.arange(12, dtype=torch.float32).reshape(3, 4)}))"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == fingerprint({"block": weights()})
