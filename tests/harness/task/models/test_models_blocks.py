"""Composite blocks of harness/task/models: what narrowing keeps, norms, pooling, refused options."""

import pytest
import torch
from torch import nn

from harness.errors import ConfigError
from harness.task.models.blocks import (
    HALVE,
    ConvBlock,
    ConvBlock1d,
    Dense,
    FeaturePool,
    activation_layer,
    narrow,
    norm_layer,
)
from harness.task.models.heads import Head
from harness.task.models.residual_blocks import Bottleneck, InvertedResidual, ResidualBlock, SqueezeExcitation


@pytest.mark.parametrize(("size", "width", "expected"), [(64, 0.5, 32), (1, 0.5, 1), (10, 0.01, 1), (5, 1.0, 5)])
def test_narrow_is_at_least_one(size, width, expected):
    assert narrow(size, width) == expected


def test_narrowed_convolution_keeps_everything_but_the_output_channels():
    block = ConvBlock(3, 64, 5, 2, 1, norm="group", activation="hardswish", pool=(3, 2, 1), bias=False, eps=0.001)
    (half,) = block.narrowed(0.5)
    expected = ConvBlock(3, 32, 5, 2, 1, norm="group", activation="hardswish", pool=(3, 2, 1), bias=False, eps=0.001)
    assert str(half) == str(expected)
    assert half(torch.randn(2, 3, 16, 16)).shape == (2, 32, 4, 4)


@pytest.mark.parametrize(
    ("block", "x_shape", "half_shape"),
    [
        (ConvBlock(3, 8, pool=HALVE), (2, 3, 8, 8), (2, 4, 4, 4)),
        (ConvBlock1d(3, 8, 5, pool=HALVE), (2, 3, 8), (2, 4, 4)),
        (ResidualBlock(8, 8), (2, 8, 4, 4), (2, 4, 4, 4)),
        (ResidualBlock(8, 16, 2), (2, 8, 4, 4), (2, 8, 2, 2)),
        (Bottleneck(16, 16), (2, 16, 4, 4), (2, 8, 4, 4)),
        (Bottleneck(8, 16, 2), (2, 8, 4, 4), (2, 8, 2, 2)),
        (InvertedResidual(8, 24, 8, 3, 1, squeeze=True, activation="relu"), (2, 8, 4, 4), (2, 4, 4, 4)),
        (Dense(32, 10, pool="flatten", dropout=0.5), (2, 8, 2, 2), (2, 5)),
        (Dense(8, 10, pool="gap"), (2, 8, 2, 2), (2, 5)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_narrowed_halves_the_output_and_shares_nothing(block, x_shape, half_shape):
    (half,) = block.narrowed(0.5)
    assert type(half) is type(block)
    assert half(torch.randn(x_shape)).shape == half_shape
    mine = {parameter.data_ptr() for parameter in block.parameters()}
    assert mine.isdisjoint(parameter.data_ptr() for parameter in half.parameters())


def test_shortcut_of_a_residual_block_is_a_convolution_only_where_the_shape_changes():
    assert isinstance(ResidualBlock(8, 8).shortcut, nn.Identity)
    assert isinstance(ResidualBlock(8, 8, 2).shortcut, ConvBlock)
    assert isinstance(ResidualBlock(8, 8).narrowed(0.5)[0].shortcut, ConvBlock)


def test_bottleneck_has_a_quarter_of_the_channels_and_the_stride_on_the_3x3():
    block = Bottleneck(8, 64, 2)
    layers = [layer.conv for layer in (block.first, block.second, block.third, block.shortcut)]
    assert [layer.kernel_size[0] for layer in layers] == [1, 3, 1, 1]
    assert [layer.stride[0] for layer in layers] == [1, 2, 1, 2]
    assert [layer.out_channels for layer in layers] == [16, 16, 64, 64]
    assert isinstance(Bottleneck(64, 64).shortcut, nn.Identity)
    assert isinstance(Bottleneck(64, 64).narrowed(0.5)[0].shortcut, ConvBlock)


def test_narrowed_inverted_residual_keeps_its_eps():
    (half,) = InvertedResidual(8, 24, 8, 3, 1, squeeze=False, activation="relu6", eps=1e-5).narrowed(0.5)
    assert {layer.eps for layer in half.modules() if isinstance(layer, nn.BatchNorm2d)} == {1e-5}


def test_inverted_residual_adds_its_input_only_where_the_shape_stays():
    make = {"squeeze": False, "activation": "relu", "norm": "none"}
    x = torch.randn(2, 8, 4, 4)
    block = InvertedResidual(8, 16, 8, 3, 1, **make)
    nn.init.zeros_(block.project.conv.weight)
    assert torch.equal(block(x), x)
    block = InvertedResidual(8, 16, 9, 3, 1, **make)
    nn.init.zeros_(block.project.conv.weight)
    assert not block(x).any()


@pytest.mark.parametrize(("channels", "squeezed"), [(72, 24), (120, 32), (480, 120), (672, 168), (960, 240)])
def test_squeeze_is_a_quarter_in_multiples_of_8(channels, squeezed):
    assert SqueezeExcitation(channels).squeeze.out_channels == squeezed


@pytest.mark.parametrize(
    ("channels", "groups"), [(64, 4), (16, 1), (24, 3), (40, 5), (3, 1), (1, 1), (20, 1), (512, 32)]
)
def test_group_norm_has_16_channels_to_a_group_where_it_can(channels, groups):
    assert norm_layer("group", channels).num_groups == groups


def test_group_norm_trains_on_a_single_pixel_and_sample():
    block = ConvBlock(3, 24, norm="group")
    assert block.train()(torch.randn(1, 3, 1, 1)).isfinite().all()


@pytest.mark.parametrize("dimensions", [1, 2])
def test_norm_none_is_no_layer(dimensions):
    assert isinstance(norm_layer("none", 8, dimensions), nn.Identity)


def test_signal_stays_of_order_one_without_norm():
    """He's variance keeps the second moment; PyTorch's default would divide it by 6 at each layer."""
    torch.manual_seed(0)
    deep = nn.Sequential(*(ConvBlock(32, 32, norm="none") for _ in range(8)))
    with torch.no_grad():
        moment = deep(torch.randn(4, 32, 16, 16)).square().mean().item()
    assert 0.05 < moment < 5


def test_gap_is_the_mean_over_all_positions():
    x = torch.arange(16.0).reshape(1, 2, 2, 4)
    assert FeaturePool("gap")(x).tolist() == [[3.5, 11.5]]
    assert FeaturePool("flatten")(x).shape == (1, 16)
    assert FeaturePool("gap")(torch.ones(2, 3)).shape == (2, 3)


def test_head_renewed_keeps_its_pooling_and_dropout():
    assert str(Head(8, 10, pool="gap").renewed(3)) == str(Head(8, 3, pool="gap"))
    head = Head(8, 10, pool="gap", dropout=0.2).renewed(3)
    assert head.dropout.p == 0.2
    assert str(head) == str(Head(8, 3, pool="gap", dropout=0.2))


def test_head_drops_features_in_training_only():
    head, x = Head(50, 3, dropout=0.5), torch.randn(2, 50)
    assert not torch.equal(head.train()(x), head(x))
    assert torch.equal(head.eval()(x), head.linear(x))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: norm_layer("bach", 8), "'bach'.*did you mean 'batch'"),
        (lambda: activation_layer("rely"), "'rely'.*did you mean 'relu'"),
        (lambda: FeaturePool("flat"), "'flat'.*did you mean 'flatten'"),
    ],
)
def test_unknown_option_is_refused_with_a_suggestion(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
