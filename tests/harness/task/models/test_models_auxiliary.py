"""harness/task/models/auxiliary.py: sizes worked out by hand, and every legal cut of every model.

VGG-5, cut 1, 32x32: conv 32 -> 32: 32 * (32 * 9 + 1) + 64 = 9,312; behind its pooling 32 * 8 * 8 = 2,048
features: 2,048 * 10 + 10 = 20,490; together 29,802.
Multiply-accumulates: 16 * 16 * 32 * 32 * 9 + 20,480 = 2,379,776.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from harness.errors import ConfigError
from harness.task.models import build
from harness.task.models.auxiliary import auxiliary
from harness.task.models.describe import cut_shape, macs, parameters

MODELS = {
    "cnn-1d": ("signal", (3, 16), 0, 5),
    "mobilenet-v2": ("image", (3, 16, 16), 0, 20),
    "mobilenet-v3-large": ("image", (3, 16, 16), 0, 19),
    "mobilenet-v3-small": ("image", (3, 16, 16), 0, 15),
    "resnet-18": ("image", (3, 8, 8), 0, 10),
    "resnet-34": ("image", (3, 8, 8), 0, 18),
    "resnet-50": ("image", (3, 8, 8), 0, 18),
    "swin-t": ("image", (3, 16, 16), 0, 17),
    "text-transformer-12": ("tokens", (6,), 30, 14),
    "text-transformer-6": ("tokens", (6,), 30, 8),
    "vgg-11": ("image", (3, 32, 32), 0, 11),
    "vgg-16": ("image", (3, 32, 32), 0, 16),
    "vgg-5": ("image", (1, 8, 8), 0, 5),
    "vit-base": ("image", (3, 8, 8), 0, 14),
    "vit-small": ("image", (3, 8, 8), 0, 14),
    "vit-tiny": ("image", (3, 8, 8), 0, 14),
}
HEAVY = ("text-transformer-12", "vgg-16", "vit-base")  # made of what lighter models are made of: on meta only
ON_CPU = [name for name in MODELS if name not in HEAVY]
CLASSES = 5


@pytest.fixture(scope="module")
def small_model():
    """A function: the model of a name, built once, on meta or on the CPU."""
    built: dict[tuple[str, str], nn.Sequential] = {}

    def get(name, device):
        kind, shape, vocabulary, length = MODELS[name]
        if (name, device) not in built:
            with torch.device(device):
                built[name, device] = build(name, kind, shape, CLASSES, vocabulary)
        assert len(built[name, device]) == length
        return built[name, device]

    return get


def batch_of_two(name, device):
    kind, shape, vocabulary, _ = MODELS[name]
    if kind == "tokens":
        return torch.randint(1, vocabulary, (2, *shape), device=device)
    return torch.randn(2, *shape, device=device)


def on_meta(name, shape, classes):
    with torch.device("meta"):
        return build(name, "image", shape, classes)


@pytest.mark.parametrize(
    ("name", "p", "num_parameters", "num_macs"),
    [
        ("vgg-5", 1, 29_802, 2_379_776),
        ("vgg-11", 1, 78_026, 9_478_144),
        ("vgg-11", 2, 229_770, 9_519_104),
    ],
)
def test_half_layer_has_the_size_worked_out_by_hand(name, p, num_parameters, num_macs):
    model = on_meta(name, (3, 32, 32), 10)
    network = auxiliary(model, p, (3, 32, 32), 10)
    assert parameters(network) == num_parameters
    assert macs(network, cut_shape(model, p, (3, 32, 32))) == num_macs


@pytest.mark.parametrize(
    ("name", "device"), [*((name, "cpu") for name in ON_CPU), *((name, "meta") for name in MODELS)]
)
def test_every_cut_trains(small_model, name, device):
    torch.manual_seed(0)
    model = small_model(name, device).train()
    activation = batch_of_two(name, device)
    for p in range(1, len(model)):
        activation = model[p - 1](activation).detach()
        check_training(auxiliary(model, p, MODELS[name][1], CLASSES), activation)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    ("kind", "pool"),
    [("half_layer", "gap"), ("linear", "flatten"), ("mlp", "flatten"), ("mlp", "gap")],
)
def test_every_kind_trains(small_model, name, kind, pool):
    _, shape, _, length = MODELS[name]
    model = small_model(name, "meta")
    for p in (1, length - 1):
        network = auxiliary(model, p, shape, CLASSES, kind=kind, pool=pool)
        check_training(network, torch.randn(2, *cut_shape(model, p, shape), device="meta"))


def check_training(network, activation):
    """One forward and backward pass: all weights and the activation get a gradient, finite if it has data."""
    activation.requires_grad_()
    logits = network(activation)
    assert logits.shape == (2, CLASSES)
    assert logits.is_meta == activation.is_meta
    F.cross_entropy(logits, torch.tensor([0, 1], device=logits.device)).backward()
    for weight in (activation, *network.parameters()):
        assert weight.grad is not None
        assert weight.grad.is_meta or weight.grad.isfinite().all()


@pytest.mark.parametrize("name", ON_CPU)
def test_behind_the_last_cut_it_is_a_fresh_copy_of_the_head(small_model, name):
    model = small_model(name, "cpu")
    network = auxiliary(model, len(model) - 1, MODELS[name][1], CLASSES)
    assert str(network[0]) == str(model[-1])
    mine = {parameter.data_ptr() for parameter in model.parameters()}
    assert mine.isdisjoint(parameter.data_ptr() for parameter in network.parameters())


def test_transformer_gets_half_the_mlp_a_projection_and_its_own_pooling():
    network = auxiliary(on_meta("vit-small", (3, 32, 32), 10), 4, (3, 32, 32), 10)
    encoder, projection, head = network
    assert (encoder.dim, encoder.mlp_dim) == (384, 768)
    assert (projection.in_features, projection.out_features) == (384, 192)
    assert head.pool.pool == "cls"


def test_linear_is_one_layer_on_the_flattened_activation():
    model = on_meta("vgg-5", (3, 32, 32), 10)
    assert parameters(auxiliary(model, 1, (3, 32, 32), 10, kind="linear")) == 32 * 16 * 16 * 10 + 10
    assert parameters(auxiliary(model, 1, (3, 32, 32), 10, kind="linear", pool="gap")) == 32 * 10 + 10


def test_mlp_has_a_hidden_layer_of_half_the_channels():
    model = on_meta("vgg-5", (3, 32, 32), 10)
    network = auxiliary(model, 2, (3, 32, 32), 10, kind="mlp", pool="gap")
    assert parameters(network) == (64 * 32 + 32) + (32 * 10 + 10)


def test_width_scales_the_copied_layer():
    model = on_meta("vgg-5", (3, 32, 32), 10)
    quarter = auxiliary(model, 1, (3, 32, 32), 10, width=0.25)
    assert parameters(quarter) == 16 * (32 * 9 + 1) + 32 + 16 * 64 * 10 + 10


def test_seed_decides_the_weights_and_the_model_is_left_alone():
    torch.manual_seed(0)
    model = build("vgg-5", "image", (1, 8, 8), 5)
    before = copy.deepcopy(model.state_dict())
    networks = []
    for seed in (1, 1):
        torch.manual_seed(seed)
        networks.append(auxiliary(model, 1, (1, 8, 8), 5).state_dict())
    assert all(torch.equal(networks[0][key], networks[1][key]) for key in networks[0])
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_a_users_blocks_need_narrowed_only_where_they_are_copied():
    model = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 4), nn.Linear(4, 3))
    with pytest.raises(ConfigError, match=r"block '1' \(Linear\).*narrowed"):
        auxiliary(model, 1, (8,), 3)
    assert parameters(auxiliary(model, 1, (8,), 3, kind="linear")) == 21
    assert parameters(auxiliary(model, 2, (8,), 3)) == 15  # the last block classifies


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split_point": 0}, r"1\.\.4"),
        ({"split_point": 5}, r"1\.\.4"),
        ({"kind": "half-layer"}, "did you mean 'half_layer'"),
        ({"pool": "gab"}, "did you mean 'gap'"),
        ({"width": 0.0}, "0.0 is outside"),
        ({"width": 1.5}, "1.5 is outside"),
    ],
)
def test_refused_options(options, message):
    arguments = {"split_point": 1, "input_shape": (3, 32, 32), "num_classes": 10} | options
    with pytest.raises(ConfigError, match=message):
        auxiliary(on_meta("vgg-5", (3, 32, 32), 10), **arguments)
