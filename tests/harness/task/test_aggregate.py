from __future__ import annotations

import pytest
import torch

from harness.task.aggregate import shares, weighted_average


def test_shares_by_samples_and_uniform() -> None:
    assert shares([30, 10, 60], "samples") == [0.3, 0.1, 0.6]
    assert shares([30, 10, 60], "uniform") == [1 / 3] * 3
    assert shares([7], "samples") == shares([7], "uniform") == [1.0]


@pytest.mark.parametrize("weighting", ["samples", "uniform"])
def test_shares_add_up_to_one(weighting: str) -> None:
    assert sum(shares([1, 2, 3, 97, 10_000], weighting)) == pytest.approx(1.0, abs=1e-15)


def test_the_average_by_hand_part_by_part() -> None:
    """0.25 x (4, 8) + 0.75 x (8, -8) = (7, -4); 0.25 x 2 + 0.75 x 6 = 5."""
    first = {"block": torch.tensor([4.0, 8.0]), "head": torch.tensor([2.0])}
    second = {"block": torch.tensor([8.0, -8.0]), "head": torch.tensor([6.0])}
    average = weighted_average([first, second], [0.25, 0.75])
    assert {name: value.tolist() for name, value in average.items()} == {"block": [7.0, -4.0], "head": [5.0]}


def test_the_arguments_are_not_touched_and_not_shared() -> None:
    states = [{"block": torch.tensor([1.0, 2.0])}, {"block": torch.tensor([3.0, 4.0])}]
    versions = [state["block"]._version for state in states]
    average = weighted_average(states, [0.5, 0.5])
    average["block"].zero_()
    assert [state["block"].tolist() for state in states] == [[1.0, 2.0], [3.0, 4.0]]
    assert [state["block"]._version for state in states] == versions


def test_one_state_is_copied_unchanged() -> None:
    state = {"block": torch.randn(100)}
    average = weighted_average([state], [1.0])
    assert torch.equal(average["block"], state["block"])
    assert average["block"].data_ptr() != state["block"].data_ptr()


def test_the_sum_goes_in_the_order_given_whatever_the_sizes() -> None:
    """Floats: (1e8 + 1) - 1e8 = 0 in float32, (1e8 - 1e8) + 1 = 1."""
    big, one, minus = ({"block": torch.tensor([value])} for value in (1e8, 1.0, -1e8))
    assert weighted_average([big, one, minus], [1.0] * 3)["block"].item() == 0.0
    assert weighted_average([big, minus, one], [1.0] * 3)["block"].item() == 1.0


def test_as_many_weights_as_states() -> None:
    with pytest.raises(ValueError, match="argument"):
        weighted_average([{"block": torch.ones(1)}] * 3, [0.5, 0.5])


def test_no_gradient_is_recorded() -> None:
    state = {"block": torch.ones(3, requires_grad=True)}
    assert not weighted_average([state, state], [0.5, 0.5])["block"].requires_grad
