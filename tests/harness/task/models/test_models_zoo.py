"""The models in harness/task/models/: published sizes, the split identity, and forwards rewritten by hand."""

import copy
import io
import re

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from harness.errors import ConfigError
from harness.task.models import build, info, names
from harness.task.models.describe import check_cut, cut_shape, macs, parameters

# (name, kind, a small input, classes, vocabulary)
SMALL = [
    ("cnn-1d", "signal", (3, 16), 5, 0),
    ("mobilenet-v2", "image", (3, 32, 32), 5, 0),
    ("mobilenet-v3-large", "image", (3, 16, 16), 5, 0),
    ("mobilenet-v3-small", "image", (3, 32, 32), 5, 0),
    ("resnet-18", "image", (3, 16, 16), 5, 0),
    ("resnet-34", "image", (3, 16, 16), 5, 0),
    ("resnet-50", "image", (3, 16, 16), 5, 0),
    ("swin-t", "image", (3, 32, 32), 5, 0),
    ("text-transformer-12", "tokens", (12,), 5, 30),
    ("text-transformer-6", "tokens", (12,), 5, 30),
    ("vgg-11", "image", (3, 32, 32), 5, 0),
    ("vgg-16", "image", (3, 32, 32), 5, 0),
    ("vgg-5", "image", (1, 8, 8), 5, 0),
    ("vit-base", "image", (3, 8, 8), 5, 0),
    ("vit-small", "image", (3, 8, 8), 5, 0),
    ("vit-tiny", "image", (3, 8, 8), 5, 0),
]
BY_NAME = {case[0]: case for case in SMALL}
each_model = pytest.mark.parametrize("name", BY_NAME)
HEAVY = ("text-transformer-12", "vgg-11", "vgg-16", "vit-base")  # 28 to 86 million weights
LIGHT = [name for name in BY_NAME if name not in HEAVY]
TRANSFORMERS = [name for name in BY_NAME if name.startswith(("swin", "text", "vit"))]
IMAGES = [case[0] for case in SMALL if case[1] == "image"]


def small(name, norm="batch"):
    _, kind, shape, classes, vocabulary = BY_NAME[name]
    return build(name, kind, shape, classes, vocabulary, norm)


def samples(name, batch=2):
    _, kind, shape, _, vocabulary = BY_NAME[name]
    return torch.randint(1, vocabulary, (batch, *shape)) if kind == "tokens" else torch.randn(batch, *shape)


def on_meta(name, kind, shape, classes, vocabulary=0, norm="batch"):
    with torch.device("meta"):
        return build(name, kind, shape, classes, vocabulary, norm)


def test_every_model_of_the_folder_is_tested_here():
    assert names() == [case[0] for case in SMALL]


# VGG-5: PipeLearn's code. Others: "num_params" of torchvision's weights, for ViT-Tiny and -Small timm's models (5.72
# and 22.05 million in its table of results).
@pytest.mark.parametrize(
    ("name", "shape", "classes", "norm", "expected"),
    [
        ("vgg-5", (3, 32, 32), 10, "batch", 582_346),
        ("vgg-11", (3, 224, 224), 1000, "none", 132_863_336),
        ("vgg-16", (3, 224, 224), 1000, "none", 138_357_544),
        ("vgg-16", (3, 224, 224), 1000, "batch", 138_365_992),
        ("resnet-18", (3, 224, 224), 1000, "batch", 11_689_512),
        ("resnet-34", (3, 224, 224), 1000, "batch", 21_797_672),
        ("resnet-50", (3, 224, 224), 1000, "batch", 25_557_032),
        ("mobilenet-v2", (3, 224, 224), 1000, "batch", 3_504_872),
        ("mobilenet-v3-large", (3, 224, 224), 1000, "batch", 5_483_032),
        ("mobilenet-v3-small", (3, 224, 224), 1000, "batch", 2_542_856),
        ("swin-t", (3, 224, 224), 1000, "batch", 28_288_354),
        ("vit-tiny", (3, 224, 224), 1000, "batch", 5_717_416),
        ("vit-small", (3, 224, 224), 1000, "batch", 22_050_664),
        ("vit-base", (3, 224, 224), 1000, "batch", 86_567_656),
    ],
)
def test_number_of_parameters_is_the_published_one(name, shape, classes, norm, expected):
    assert parameters(on_meta(name, "image", shape, classes, norm=norm)) == expected


@pytest.mark.parametrize(
    ("name", "blocks", "expected"),
    [
        ("vgg-5", 1, 960),  # 32 (3 * 9 + 1) + 64 of batch norm
        ("vgg-5", 2, 19_584),
        ("vgg-5", 3, 56_640),
        ("vgg-11", 1, 1_920),
        ("vgg-11", 2, 76_032),
    ],
)
def test_parameters_of_a_device_block(name, blocks, expected):
    assert parameters(on_meta(name, "image", (3, 32, 32), 10)[:blocks]) == expected


@pytest.mark.parametrize(("depth", "width"), [(6, 256), (12, 768)])
def test_parameters_of_the_text_transformers_by_hand(depth, width):
    embedding = 30_000 * width + 64 * width
    attention = (3 * width * width + 3 * width) + (width * width + width)
    encoder = 4 * width + attention + (2 * width * 4 * width + 4 * width + width)
    head = 2 * width + width * 4 + 4
    model = on_meta(f"text-transformer-{depth}", "tokens", (64,), 4, 30_000)
    assert parameters(model) == embedding + depth * encoder + head


def test_the_deeper_text_transformer_has_bert_bases_encoder():
    assert parameters(on_meta("text-transformer-12", "tokens", (64,), 4, 30_000)[1:-1]) == 85_054_464


def test_parameters_of_the_signal_network_by_hand():
    convolutions = (9 * 5 + 1) * 32 + (32 * 5 + 1) * 64 + (64 * 5 + 1) * 64 + 2 * (32 + 64 + 64)
    dense = (64 * 16 + 1) * 128 + (128 + 1) * 6
    assert parameters(on_meta("cnn-1d", "signal", (9, 128), 6)) == convolutions + dense


@pytest.mark.parametrize(
    ("name", "shape", "classes", "expected"),
    [
        ("vgg-5", (3, 32, 32), 10, 8_488_192),
        ("vgg-11", (3, 32, 32), 10, 171_679_744),
        ("resnet-18", (3, 224, 224), 1000, 1_814_073_344),
        ("mobilenet-v3-large", (3, 224, 224), 1000, 216_589_760),
    ],
)
def test_multiply_accumulates_are_the_published_ones(name, shape, classes, expected):
    assert macs(on_meta(name, "image", shape, classes), shape) == expected


# "_ops" of torchvision's weights, in 10^9, rounded as there; ViT-Tiny: timm's table of results.
@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("resnet-34", 3.664),
        ("resnet-50", 4.089),
        ("mobilenet-v2", 0.301),
        ("mobilenet-v3-small", 0.057),
        ("swin-t", 4.491),
        ("vgg-16", 15.47),
        ("vit-base", 17.564),
        ("vit-tiny", 1.26),
    ],
)
def test_multiply_accumulates_are_near_the_published_ones(name, published):
    model = on_meta(name, "image", (3, 224, 224), 1000)
    assert macs(model, (3, 224, 224)) / 1e9 == pytest.approx(published, rel=0.01)


@pytest.mark.parametrize(
    ("name", "shape", "p", "expected"),
    [
        ("vgg-5", (3, 32, 32), 1, (32, 16, 16)),
        ("vgg-5", (1, 28, 28), 2, (64, 7, 7)),
        ("vgg-11", (3, 32, 32), 1, (64, 16, 16)),
        ("vgg-11", (3, 32, 32), 2, (128, 8, 8)),
        ("mobilenet-v3-large", (3, 32, 32), 1, (16, 16, 16)),
        ("resnet-18", (3, 32, 32), 1, (64, 32, 32)),
        ("resnet-18", (3, 224, 224), 1, (64, 56, 56)),
        ("vit-small", (3, 32, 32), 1, (65, 384)),
        ("vit-small", (3, 224, 224), 1, (197, 384)),
        ("mobilenet-v2", (3, 32, 32), 2, (16, 16, 16)),
        ("mobilenet-v3-small", (3, 32, 32), 2, (16, 8, 8)),
        ("resnet-50", (3, 224, 224), 4, (256, 56, 56)),
        ("resnet-50", (3, 224, 224), 5, (512, 28, 28)),
        ("resnet-50", (3, 32, 32), 17, (2048, 4, 4)),
        ("swin-t", (3, 224, 224), 1, (56 * 56, 96)),
        ("swin-t", (3, 224, 224), 4, (28 * 28, 192)),
        ("swin-t", (3, 224, 224), 16, (7 * 7, 768)),
        ("swin-t", (3, 32, 32), 1, (16 * 16, 96)),
        ("swin-t", (3, 32, 32), 16, (2 * 2, 768)),
        ("vgg-16", (3, 32, 32), 13, (512, 1, 1)),
    ],
)
def test_shape_at_a_cut(name, shape, p, expected):
    assert cut_shape(on_meta(name, "image", shape, 10), p, shape) == expected


@each_model
def test_a_split_changes_nothing(name):
    torch.manual_seed(0)
    _, _, shape, classes, _ = BY_NAME[name]
    model, x = small(name).eval(), samples(name)
    with torch.no_grad():
        whole = model(x)
        assert whole.shape == (2, classes)
        for p in range(1, len(model)):
            check_cut(model, p, name)
            activation = model[:p](x)
            assert activation.shape[1:] == cut_shape(model, p, shape)
            assert torch.equal(model[p:](activation), whole)


@pytest.mark.parametrize(
    ("name", "norm"),
    [
        *((name, norm) for name in LIGHT if name not in TRANSFORMERS for norm in ("batch", "group", "none")),
        *((name, "batch") for name in LIGHT if name in TRANSFORMERS),
        *((name, "group") for name in HEAVY),
    ],
)
def test_every_weight_gets_a_gradient(name, norm):
    torch.manual_seed(0)
    check_gradients(small(name, norm), samples(name))


@pytest.mark.parametrize("name", [name for name in IMAGES if name not in HEAVY])
def test_every_weight_gets_a_gradient_at_32x32(name):
    torch.manual_seed(0)
    check_gradients(build(name, "image", (3, 32, 32), 10), torch.randn(2, 3, 32, 32))


def check_gradients(model, x):
    F.cross_entropy(model.train()(x), torch.tensor([0, 1])).backward()
    for weight_name, weight in model.named_parameters():
        assert weight.grad is not None, weight_name
        assert bool(weight.grad.isfinite().all()), weight_name


@pytest.mark.parametrize("side", [32, 224])
@pytest.mark.parametrize("name", IMAGES)
def test_every_weight_gets_a_gradient_on_meta(name, side):
    with torch.device("meta"):
        model = build(name, "image", (3, side, side), 10).train()
        logits = model(torch.randn(2, 3, side, side))
        assert logits.shape == (2, 10)
        logits.sum().backward()
    assert all(weight.grad.shape == weight.shape for weight in model.parameters())


@pytest.mark.parametrize("name", LIGHT)
def test_the_seed_decides_the_weights(name):
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        states.append(small(name).state_dict())
    first, same, other = states
    assert all(torch.equal(first[key], same[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize("name", LIGHT)
def test_a_copy_is_deep_and_equal(name):
    model, x = small(name).eval(), samples(name)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        assert torch.equal(twin(x), model(x))
        next(twin.parameters()).add_(1)
    assert not torch.equal(next(twin.parameters()), next(model.parameters()))


@pytest.mark.parametrize("name", ["swin-t", "vgg-5", "vit-small"])
def test_a_model_can_be_pickled(name):
    model, x = small(name).eval(), samples(name)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))


@each_model
def test_nothing_works_in_place(name):
    model = on_meta(*BY_NAME[name])
    assert not [layer for layer in model.modules() if getattr(layer, "inplace", False)]
    if name in HEAVY:
        return
    model, x = small(name), samples(name)
    for block in model:
        before = x.clone()
        y = block(x)
        assert torch.equal(x, before)
        x = y.detach()


@pytest.mark.parametrize(
    ("name", "device"), [*((name, "cpu") for name in LIGHT), *((name, "meta") for name in BY_NAME)]
)
def test_forward_and_backward_under_a_dispatch_mode(name, device):
    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            seen.append(str(operation))
            return operation(*args, **(kwargs or {}))

    seen: list[str] = []
    with torch.device(device):
        model, x = small(name), samples(name)
        with Recorder():
            model(x).sum().backward()
    assert seen


@each_model
def test_repr_tells_different_models_apart(name):
    """Prices are keyed by str(module): it must show what changes the work, and no address of this process."""
    text = str(on_meta(*BY_NAME[name]))
    assert text == str(on_meta(*BY_NAME[name]))
    assert not re.search(r"0x[0-9a-f]{6}", text)
    if name in TRANSFORMERS:
        assert "heads=" in text
    else:
        assert text != str(on_meta(*BY_NAME[name], norm="none"))


@pytest.mark.parametrize(
    ("name", "kind", "shape", "smallest"),
    [
        ("vgg-11", "image", (3, 8, 8), "32x32"),
        ("vgg-11", "image", (1, 28, 28), "32x32"),
        ("vgg-16", "image", (3, 31, 32), "VGG-16 .* 32x32"),
        ("vgg-5", "image", (1, 3, 8), "4x4"),
        ("cnn-1d", "signal", (9, 7), "smallest input is 8"),
    ],
)
def test_too_small_an_input_names_the_smallest(name, kind, shape, smallest):
    with pytest.raises(ConfigError, match=smallest):
        on_meta(name, kind, shape, 10)


@pytest.mark.parametrize(("name", "title"), [("vit-tiny", "ViT-Tiny"), ("vit-small", "ViT-S"), ("vit-base", "ViT-B")])
def test_vit_refuses_a_size_that_patches_do_not_fill(name, title):
    with pytest.raises(ConfigError, match=f"{title}.* multiple of 4"):
        on_meta(name, "image", (3, 30, 30), 10)


@pytest.mark.parametrize("shape", [(3, 28, 28), (3, 8, 8), (3, 48, 48), (3, 96, 96), (3, 224, 256)])
def test_swin_refuses_a_size_that_windows_do_not_fill(shape):
    with pytest.raises(ConfigError, match=f"{shape[1]}x{shape[2]}.* 32x32"):
        on_meta("swin-t", "image", shape, 10)


@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 64, 64), (3, 32, 64), (3, 448, 224)])
def test_swin_accepts_what_windows_fill(shape):
    assert cut_shape(on_meta("swin-t", "image", shape, 10), 17, shape) == (10,)


@pytest.mark.parametrize("name", ["text-transformer-6", "text-transformer-12"])
def test_text_transformer_refuses_a_missing_vocabulary(name):
    with pytest.raises(ConfigError, match=f"{name[17:]} blocks.* vocabulary"):
        on_meta(name, "tokens", (12,), 4)


def test_info_says_what_a_model_accepts():
    assert info("cnn-1d").kinds == ("signal",)
    assert all(info(name).title and info(name).paper for name in names())


def shake(model):
    """Give batch norm statistics and scales that a mistake cannot hide behind."""
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if key.endswith(("running_mean", "norm.bias")):
                value.normal_(0, 0.3)
            elif key.endswith(("running_var", "norm.weight")):
                value.uniform_(0.5, 1.5)
    return model.eval()


def conv_norm(state, prefix, x, *, stride=1, groups=1, eps=1e-5):
    """Convolution without bias, padded to keep the size, then batch norm written out."""
    weight = state[f"{prefix}.conv.weight"]
    x = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2, groups=groups)
    mean, variance, scale, offset = (
        state[f"{prefix}.norm.{key}"][:, None, None] for key in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / torch.sqrt(variance + eps) * scale + offset


@torch.no_grad()
@pytest.mark.parametrize("side", [16, 72])
def test_resnet_18_against_a_forward_written_by_hand(side):
    torch.manual_seed(0)
    model = shake(build("resnet-18", "image", (3, side, side), 5))
    state = {key: value.double() for key, value in model.state_dict().items()}
    x = torch.randn(2, 3, side, side).double()

    y = F.relu(conv_norm(state, "stem", x, stride=1 if side == 16 else 2))
    if side == 72:
        y = F.max_pool2d(y, 3, 2, 1)
    for stage in (1, 2, 3, 4):
        for half in "ab":
            name, stride = f"stage{stage}{half}", 2 if stage > 1 and half == "a" else 1
            inner = F.relu(conv_norm(state, f"{name}.first", y, stride=stride))
            inner = conv_norm(state, f"{name}.second", inner)
            shortcut = conv_norm(state, f"{name}.shortcut", y, stride=stride) if stride == 2 else y
            y = F.relu(inner + shortcut)
    y = y.sum((2, 3)) / (y.shape[2] * y.shape[3]) @ state["head.linear.weight"].T + state["head.linear.bias"]

    torch.testing.assert_close(model.double()(x), y)


# torchvision's tables: expanded, out, squeeze, hardswish, stride (the kernel is in the weights)
MOBILENET_V3 = {
    "large": """16 16 0 0 1  64 24 0 0 2  72 24 0 0 1  72 40 1 0 2  120 40 1 0 1  120 40 1 0 1  240 80 0 1 2
                200 80 0 1 1  184 80 0 1 1  184 80 0 1 1  480 112 1 1 1  672 112 1 1 1  672 160 1 1 2
                960 160 1 1 1  960 160 1 1 1""",
    "small": """16 16 1 0 2  72 24 0 0 2  88 24 0 0 1  96 40 1 1 2  240 40 1 1 1  240 40 1 1 1  120 48 1 1 1
                144 48 1 1 1  288 96 1 1 2  576 96 1 1 1  576 96 1 1 1""",
}


@torch.no_grad()
@pytest.mark.parametrize("size", MOBILENET_V3)
def test_mobilenet_v3_against_a_forward_written_by_hand(size):
    torch.manual_seed(0)
    model = shake(build(f"mobilenet-v3-{size}", "image", (3, 32, 32), 5))
    state = {key: value.double() for key, value in model.state_dict().items()}
    x = torch.randn(2, 3, 32, 32).double()

    def hardswish(z):
        return z * (z + 3).clamp(0, 6) / 6

    numbers = [int(number) for number in MOBILENET_V3[size].split()]
    y = hardswish(conv_norm(state, "stem", x, stride=2, eps=0.001))
    for index in range(len(numbers) // 5):
        expanded, out, squeeze, swish, stride = numbers[5 * index : 5 * index + 5]
        name, activation = f"bneck{index + 1}", hardswish if swish else F.relu
        z = y
        if expanded != y.shape[1]:
            z = activation(conv_norm(state, f"{name}.expand", z, eps=0.001))
        z = activation(conv_norm(state, f"{name}.depthwise", z, stride=stride, groups=expanded, eps=0.001))
        if squeeze:
            gate = F.conv2d(
                z.mean((2, 3), keepdim=True),
                state[f"{name}.squeeze.squeeze.weight"],
                state[f"{name}.squeeze.squeeze.bias"],
            )
            gate = F.conv2d(F.relu(gate), state[f"{name}.squeeze.excite.weight"], state[f"{name}.squeeze.excite.bias"])
            z = z * ((gate + 3).clamp(0, 6) / 6)
        z = conv_norm(state, f"{name}.project", z, eps=0.001)
        y = y + z if stride == 1 and y.shape[1] == out else z
    y = hardswish(conv_norm(state, "conv", y, eps=0.001)).mean((2, 3))
    y = hardswish(F.linear(y, state["fc1.linear.weight"], state["fc1.linear.bias"]))
    y = F.linear(y, state["fc2.linear.weight"], state["fc2.linear.bias"])

    torch.testing.assert_close(model.double()(x), y)
