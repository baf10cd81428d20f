"""harness/task/models/token_blocks.py: attention against one by hand, padding that crosses cuts."""

import math

import pytest
import torch
import torch.nn.functional as F

from harness.errors import ConfigError
from harness.task.models import build
from harness.task.models.token_blocks import EncoderBlock, MultiHeadAttention, TokenPool, real_positions


def attend_by_hand(attention, x, real):
    """Loop over samples, heads and queries, in float64."""
    dim, heads = x.shape[-1], attention.heads
    width = dim // heads
    query, key, value = F.linear(x, attention.qkv.weight, attention.qkv.bias).split(dim, dim=-1)
    mixed = torch.zeros_like(x)
    for sample in range(x.shape[0]):
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            for position in range(x.shape[1]):
                scores = key[sample, :, part] @ query[sample, position, part] / math.sqrt(width)
                weights = scores.exp() * real[sample]
                mixed[sample, position, part] = (weights / weights.sum()) @ value[sample, :, part]
    return F.linear(mixed, attention.output.weight, attention.output.bias)


@torch.no_grad()
def test_encoder_block_against_one_written_by_hand():
    torch.manual_seed(0)
    block = EncoderBlock(8, 2, 16, masked=True).double()
    for parameter in block.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.3)
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    x[1, 3:] = 0
    real = real_positions(x)
    assert real.tolist() == [[True] * 5, [True] * 3 + [False] * 2]

    y = x + attend_by_hand(block.attention, block.attention_norm(x), real)
    y = y + block.mlp[2](F.gelu(block.mlp[0](block.mlp_norm(y))))
    y[1, 3:] = 0
    torch.testing.assert_close(block(x), y)


@torch.no_grad()
def test_attention_without_padding_against_one_written_by_hand():
    torch.manual_seed(0)
    attention = MultiHeadAttention(12, 3).double()
    attention.qkv.weight.normal_()
    x = torch.randn(2, 4, 12, dtype=torch.float64)
    torch.testing.assert_close(attention(x), attend_by_hand(attention, x, torch.ones(2, 4)))


@torch.no_grad()
def test_padding_changes_no_prediction_and_stays_zero_at_every_cut():
    torch.manual_seed(0)
    model = build("text-transformer-6", "tokens", (12,), 4, 30).eval()
    ids = torch.randint(1, 30, (3, 12))
    ids[0, 5:], ids[1, 1:] = 0, 0
    for p in range(1, len(model)):
        activation = model[:p](ids)
        assert real_positions(activation).tolist() == ids.ne(0).tolist()

    short = build("text-transformer-6", "tokens", (5,), 4, 30).eval()
    state = {key: value[:, :5] if key == "embedding.positions" else value for key, value in model.state_dict().items()}
    short.load_state_dict(state)
    torch.testing.assert_close(model(ids)[0], short(ids[:1, :5])[0])


def test_padding_gets_no_gradient_and_an_empty_text_is_finite():
    torch.manual_seed(0)
    model = build("text-transformer-6", "tokens", (6,), 4, 30)
    ids = torch.tensor([[3, 4, 0, 0, 0, 0], [0] * 6])
    activation = model[:1](ids).detach().requires_grad_()
    logits = model[1:](activation)
    logits.sum().backward()
    assert logits.isfinite().all()
    assert real_positions(activation.grad).tolist() == ids.ne(0).tolist()


def test_narrowed_encoder_halves_the_mlp_then_projects_and_keeps_padding():
    block, projection = EncoderBlock(8, 2, 32, masked=True).narrowed(0.5)
    assert str(block) == str(EncoderBlock(8, 2, 16, masked=True))
    x = torch.randn(2, 5, 8)
    x[0, 2:] = 0
    y = projection(block(x))
    assert y.shape == (2, 5, 4)
    assert real_positions(y).tolist() == real_positions(x).tolist()


@torch.no_grad()
def test_mean_pooling_leaves_padding_out():
    pool = TokenPool(4, "mean")
    x = torch.randn(1, 3, 4)
    x[0, 2] = 0
    torch.testing.assert_close(pool(x), pool.norm(x[:, :2]).mean(dim=1))


def test_unknown_pooling_is_refused():
    with pytest.raises(ConfigError, match=r"'means'.*did you mean 'mean'"):
        TokenPool(4, "means")
