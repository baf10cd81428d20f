"""harness/task/models/describe.py: counts by hand, shapes without data, refused cuts."""

import pytest
import torch
from torch import nn

from harness.errors import ConfigError
from harness.task.models import build
from harness.task.models.blocks import ConvBlock
from harness.task.models.describe import check_cut, cut_shape, float_buffers, macs, output_shape, parameters
from harness.task.models.token_blocks import EncoderBlock


def vgg_5():
    return build("vgg-5", "image", (3, 32, 32), 10)


def test_parameters_counts_a_shared_weight_once():
    layer = nn.Linear(3, 4)
    assert parameters(nn.Sequential(layer, nn.ReLU())) == 16
    assert parameters(nn.Sequential(layer, nn.Linear(4, 3), layer)) == 16 + 15


def test_float_buffers_are_the_running_statistics_without_the_counter():
    assert float_buffers(ConvBlock(3, 8)) == 16
    assert float_buffers(ConvBlock(3, 8, norm="group")) == 0


def test_macs_of_a_convolution_and_a_linear_layer():
    assert macs(ConvBlock(3, 8, stride=2), (3, 10, 10)) == 5 * 5 * 9 * 3 * 8
    assert macs(nn.Linear(7, 5), (7,)) == 35


def test_macs_of_an_encoder_block_include_both_attention_products():
    linear = 6 * (8 * 24 + 8 * 8 + 2 * 8 * 32)
    attention = 2 * 6 * 6 * 8
    for masked in (False, True):
        assert macs(EncoderBlock(8, 2, 32, masked=masked), (6, 8)) == linear + attention


def test_macs_of_a_split_add_up():
    model = vgg_5()
    for p in range(1, len(model)):
        behind = cut_shape(model, p, (3, 32, 32))
        assert macs(model[:p], (3, 32, 32)) + macs(model[p:], behind) == 8_488_192


def test_describing_leaves_the_model_alone():
    model = vgg_5().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    macs(model, (3, 32, 32))
    cut_shape(model, 2, (3, 32, 32))
    assert model.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}


def test_cut_shape_at_both_ends():
    model = vgg_5()
    assert cut_shape(model, 0, (3, 32, 32)) == (3, 32, 32)
    assert cut_shape(model, 5, (3, 32, 32)) == (10,)


def test_cut_shape_of_tokens_with_and_without_a_type():
    model = build("text-transformer-6", "tokens", (12,), 4, 30)
    assert cut_shape(model, 3, (12,)) == cut_shape(model, 3, (12,), torch.int64) == (12, 256)


def test_output_shape_of_a_module_without_weights():
    assert output_shape(nn.Flatten(), (2, 3)) == (6,)


def test_half_precision_weights_are_described_too():
    assert output_shape(nn.Linear(3, 2).half(), (3,)) == (2,)


@pytest.mark.parametrize("p", [-1, 0, 5, 6])
def test_check_cut_names_the_range_and_the_blocks(p):
    with pytest.raises(ConfigError, match=rf"split point {p} .* 1\.\.4 .*'vgg-5'.*1 conv1, .*5 fc2"):
        check_cut(vgg_5(), p, "vgg-5")


def test_cut_shape_outside_the_model_is_refused():
    with pytest.raises(ConfigError, match=r"cut 6 is outside 0\.\.5"):
        cut_shape(vgg_5(), 6, (3, 32, 32))


def test_a_shape_the_model_does_not_accept_is_refused():
    with pytest.raises(ConfigError, match=r"does not accept a sample of shape \(1, 32, 32\)"):
        macs(vgg_5(), (1, 32, 32))
