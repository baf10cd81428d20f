"""harness/task/models/window_blocks.py: windows against attention over the whole map, pairs forbidden one by one."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from harness.task.models.describe import float_buffers
from harness.task.models.window_blocks import PatchMap, PatchMerging, WindowBlock, from_windows, in_windows


def attend_by_hand(block, x):
    """One softmax over all patches of the map for each query; a pair that shares no window has no score."""
    (height, width), window, shift = block.sides, block.window, block.shift
    heads, dim = block.attention.heads, block.dim
    queries, keys, values = F.linear(x, block.attention.qkv.weight, block.attention.qkv.bias).split(dim, dim=-1)
    patches = list(itertools.product(range(height), range(width)))
    mixed = torch.zeros_like(x)
    for head in range(heads):
        part = slice(head * dim // heads, (head + 1) * dim // heads)
        scores = queries[..., part] @ keys[..., part].transpose(1, 2) / math.sqrt(dim // heads)
        for (q, (y, x_)), (k, (v, u)) in itertools.product(enumerate(patches), repeat=2):
            down, right = y - v, x_ - u
            # the windows of a shifted block begin at `shift`; what is in front of it is a smaller window of its own
            same_rows = (y - shift) // window == (v - shift) // window
            same_columns = (x_ - shift) // window == (u - shift) // window
            if same_rows and same_columns:
                row = (down + window - 1) * (2 * window - 1) + right + window - 1
                scores[:, q, k] += block.attention.position_bias[row, head]
            else:
                scores[:, q, k] = -math.inf
        mixed[..., part] = scores.softmax(dim=-1) @ values[..., part]
    return F.linear(mixed, block.attention.output.weight, block.attention.output.bias)


def shaken(block):
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return block.double()


@torch.no_grad()
@pytest.mark.parametrize(
    ("sides", "window", "shifted", "shift"),
    [
        ((4, 6), 2, False, 0),
        ((4, 6), 2, True, 1),
        ((6, 6), 3, True, 1),
        ((8, 4), 4, True, 0),
        ((8, 8), 4, True, 2),
        ((2, 2), 4, True, 0),
        ((1, 1), 4, True, 0),
    ],
)
def test_window_block_against_one_written_by_hand(sides, window, shifted, shift):
    torch.manual_seed(0)
    block = shaken(WindowBlock(8, 2, sides, window, 16, shifted=shifted))
    assert block.shift == shift
    x = torch.randn(2, math.prod(sides), 8, dtype=torch.float64)
    y = x + attend_by_hand(block, block.attention_norm(x))
    y = y + block.mlp[2](F.gelu(block.mlp[0](block.mlp_norm(y))))
    torch.testing.assert_close(block(x), y)


def test_windows_are_cut_and_put_together_again():
    grid = torch.arange(2 * 4 * 6 * 3.0).reshape(2, 4, 6, 3)
    windows = in_windows(grid, 2)
    assert windows.shape == (2, 6, 4, 3)
    assert torch.equal(windows[0, 4], grid[0, 2:4, 2:4].reshape(4, 3))
    assert torch.equal(from_windows(windows, (4, 6), 2), grid)


@torch.no_grad()
def test_merging_stacks_the_corners_of_a_square_column_by_column():
    merge = PatchMerging(2, 5, (4, 6)).double()
    x = torch.randn(3, 24, 2, dtype=torch.float64)
    grid = x.view(3, 4, 6, 2)
    corners = [grid[:, 0::2, 0::2], grid[:, 1::2, 0::2], grid[:, 0::2, 1::2], grid[:, 1::2, 1::2]]
    expected = F.linear(F.layer_norm(torch.cat(corners, -1), (8,)), merge.reduction.weight)
    torch.testing.assert_close(merge(x), expected.view(3, 6, 5))


@torch.no_grad()
def test_patches_come_in_rows():
    patches = PatchMap(3, 2, 8)
    x = torch.randn(1, 3, 4, 6)
    for row, column in itertools.product(range(2), range(3)):
        alone = patches(x[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2])
        torch.testing.assert_close(patches(x)[:, 3 * row + column], alone[:, 0])


def test_constants_are_no_state():
    block = WindowBlock(8, 2, (8, 8), 4, 16, shifted=True)
    assert {name for name, _ in block.named_buffers()} == {"hidden", "attention.relative"}
    assert float_buffers(block) == 0
    assert set(block.state_dict()) == {name for name, _ in block.named_parameters()}


def test_gradients_are_the_same_every_time():
    torch.manual_seed(0)
    block, x = WindowBlock(24, 3, (16, 16), 4, 48, shifted=True), torch.randn(8, 256, 24)
    gradients = [torch.autograd.grad(block(x).square().sum(), block.attention.position_bias)[0] for _ in range(3)]
    assert torch.equal(gradients[0], gradients[1])
    assert torch.equal(gradients[0], gradients[2])


def test_narrowed_block_halves_the_mlp_then_projects():
    block, projection = WindowBlock(8, 2, (8, 8), 4, 32, shifted=True).narrowed(0.5)
    assert str(block) == str(WindowBlock(8, 2, (8, 8), 4, 16, shifted=True))
    assert projection(block(torch.randn(2, 64, 8))).shape == (2, 64, 4)


def test_narrowed_merging_halves_its_output():
    (half,) = PatchMerging(8, 16, (4, 4)).narrowed(0.5)
    assert half(torch.randn(2, 16, 8)).shape == (2, 4, 8)


def test_repr_shows_what_changes_the_work():
    texts = {
        str(WindowBlock(8, heads, sides, window, 16, shifted=shifted))
        for heads, sides, window, shifted in itertools.product((2, 4), ((8, 8), (4, 16)), (2, 1), (False, True))
    }
    # windows of one patch have no half to shift by
    assert len(texts) == 2 * 2 * 3
