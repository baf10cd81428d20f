"""harness/cost/key.py: what has one price and what has not."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness import method
from harness.cost.key import digest, key, name, structure
from harness.errors import ProtocolError

ROOT = Path(__file__).parents[3]


def compute(*args: Any) -> None:
    """Do nothing."""


class Block:
    def __init__(self, signature: str) -> None:
        self.signature = signature

    def step(self, batch: Any) -> None:
        """Do nothing."""

    def infer(self, batch: Any) -> None:
        """Do nothing."""

    @staticmethod
    def static(batch: Any) -> None:
        """Do nothing."""


class Unsigned:
    def step(self) -> None:
        """Do nothing."""


def test_equal_shapes_have_one_key_whatever_the_values():
    one, two = torch.zeros(2, 3), torch.ones(2, 3)
    assert key(compute, (one, {"w": [one]})) == key(compute, (two, {"w": [two]}))
    assert hash(key(compute, (one,))) == hash(key(compute, (two,)))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_shape_dtype_and_gradient_are_part_of_the_key(device: str):
    keys = {
        key(compute, (tensor,))
        for tensor in (
            torch.zeros(2, 3, device=device),
            torch.zeros(3, 2, device=device),
            torch.zeros(6, device=device),
            torch.zeros(2, 3, dtype=torch.float16, device=device),
            torch.zeros(2, 3, device=device, requires_grad=True),
        )
    }
    assert len(keys) == 5


def test_a_meta_tensor_whose_gradient_is_wanted_later_has_another_key():
    tensor = torch.zeros(2, device="meta")
    before = key(compute, (tensor,))
    assert key(compute, (tensor.requires_grad_(True),)) != before


def test_a_parameter_counts_like_a_tensor_that_wants_a_gradient():
    parameter = torch.nn.Parameter(torch.zeros(2))
    assert structure(parameter) == structure(torch.zeros(2, requires_grad=True))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((1,), (2,)),
        (("float16",), ("float32",)),
        ((True,), (False,)),
        ((None,), (0,)),
        (({"a": 1},), ({"b": 1},)),
        (([1, 2],), ([1, 2, 3],)),
        (([[1], [2]],), ([[1, 2]],)),
        ((1, 2), ((1, 2),)),
        ((True,), (1,)),
        ((False,), (0,)),
    ],
)
def test_what_decides_the_cost_is_part_of_the_key(a: tuple[Any, ...], b: tuple[Any, ...]):
    assert key(compute, a) != key(compute, b)


def test_a_number_with_a_fraction_scales_values_and_not_costs():
    assert key(compute, (0.5,)) == key(compute, (0.25,))
    assert key(compute, ([0.5, 0.5],)) == key(compute, ([0.1, 0.9],))
    assert key(compute, ([0.5, 0.5],)) != key(compute, ([0.3, 0.3, 0.4],))


def test_objects_of_one_signature_have_one_key():
    """P3: thirty devices, one trace."""
    assert len({key(Block("vgg[0:2]").step, (1,)) for _ in range(30)}) == 1


def test_cut_and_method_are_part_of_the_key():
    keys = {key(block.step, (1,)) for block in (Block("vgg[0:2]"), Block("vgg[0:5]"))}
    keys.add(key(Block("vgg[0:2]").infer, (1,)))
    assert len(keys) == 3


def test_an_argument_is_known_by_its_signature():
    assert key(compute, (Block("batch of 16"),)) == key(compute, (Block("batch of 16"),))
    assert key(compute, (Block("batch of 16"),)) != key(compute, (Block("batch of 3"),))


def test_functions_of_modules_classes_and_torch_have_an_identity():
    for fn in (compute, Block.static, torch.relu, torch.add, len):
        assert key(fn, (1,)) == key(fn, (1,))
    assert key(torch.relu, (1,)) != key(torch.add, (1,))


def _local() -> Any:
    def inside() -> None:
        """No identity."""

    return inside


@pytest.mark.parametrize(
    "fn",
    [lambda: None, _local(), functools.partial(compute, 1), torch.nn.ReLU(), Block, torch.zeros(2).sum, [].append],
    ids=["lambda", "local", "partial", "module", "class", "method of a tensor", "method of a list"],
)
def test_what_has_no_identity_is_refused(fn: Any):
    for _ in range(2):  # also when asked again
        with pytest.raises(ProtocolError, match=r"identity|signature"):
            key(fn, ())


def test_a_method_of_an_object_without_a_signature_is_refused():
    with pytest.raises(ProtocolError, match="'Unsigned', which has no `signature`"):
        key(Unsigned().step, ())


@pytest.mark.parametrize("value", [np.zeros(2), {1, 2}, object(), b"bytes"])
def test_an_argument_without_a_signature_is_refused(value: Any):
    with pytest.raises(ProtocolError, match=f"{type(value).__name__!r}.*`signature`"):
        key(compute, ([value],))


def test_names_are_those_of_the_functions():
    assert (name(compute), name(Block("x").step), name(torch.relu)) == ("compute", "step", "relu")


# ---- digests --------------------------------------------------------------------------------------------------------

MIXED = (0.5, True, None, 3, "three", [torch.zeros(2, 3)], {"w": torch.zeros(4, dtype=torch.int64)})


def test_a_digest_is_the_same_in_every_process():
    """Also where strings hash otherwise."""
    script = (
        "import torch; from harness.cost.key import digest, key\n"
        f"mixed = {MIXED[:-2]!r} + ([torch.zeros(2, 3)], {{'w': torch.zeros(4, dtype=torch.int64)}})\n"
        "print(digest(key(torch.relu, mixed)))"
    )
    here = digest(key(torch.relu, MIXED))
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == here, done.stderr
    assert re.fullmatch("[0-9a-f]{16}", here)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_digest_is_the_same_with_and_without_values(device: str):
    tensors = [torch.zeros(2, 3, device=device), torch.zeros(4, device=device, requires_grad=True)]
    assert digest(key(compute, (tensors,))) == digest(
        key(compute, ([torch.ones(2, 3), torch.ones(4, requires_grad=True)],))
    )


def test_different_keys_have_different_digests():
    values: list[Any] = [0, 1, True, False, None, 1.5, "1", "", "None", (1,), ((1,),), (1, 1), (), [()], {"a": 1}]
    values += [torch.zeros(1), torch.zeros(1, 1), torch.zeros(1, dtype=torch.float16), Block("1 "), "(1,1)", "1,1"]
    keys = [
        key(fn, (value,)) for fn in (compute, len, torch.relu, Block("b").step, Block("c").step) for value in values
    ]
    assert len({digest(found) for found in keys}) == len(set(keys)) > 90


def test_functions_of_one_name_in_two_modules_have_different_digests():
    found = set()
    for name_ in ("one", "two"):
        module = types.ModuleType(name_)
        exec("def step(): pass", module.__dict__)
        found.add(digest(key(module.step, ())))
    assert len(found) == 2


def test_where_a_users_file_lies_is_no_part_of_the_digest(tmp_path: Path):
    source = "async def device(node, task, config): ...\ndef step(): ...\nclass Config(MethodConfig): ...\n"
    source = f"from harness.method import MethodConfig\n{source}ROLES = {{'device': device}}\nENDS = 'device'\n"
    found = []
    for path in (tmp_path / "here" / "mine.py", tmp_path / "there" / "mine.py", tmp_path / "yours.py"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(source)
        module = sys.modules[method.load(str(path)).roles["device"].__module__]
        found.append(digest(key(module.step, ())))
    assert found[0] == found[1] != found[2]


def test_a_signature_that_another_process_cannot_have_is_refused():
    odd = Block(object())  # type: ignore[arg-type]
    with pytest.raises(ProtocolError, match=r"signature <object object .* make it a string"):
        digest(key(odd.step, ()))
