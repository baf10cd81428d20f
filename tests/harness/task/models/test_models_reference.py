"""The models against Hugging Face's implementations: equal weights, equal logits, in float64.

`transformers` shares no code with Ammeter. Its models are built from a configuration, without any download, and given
random weights; these are renamed and loaded into ours, strictly, so that no weight is missing or left over.
"""

import re
from string import ascii_lowercase

import pytest
import torch
import torch.nn.functional as F

from harness.task.models import build
from harness.task.models.describe import parameters

transformers = pytest.importorskip(
    "transformers", exc_type=ImportError, reason="needs the transformers package (extra `dev`)"
)

CLASSES = 7
CONV_NAMES = ((r"\bconvolution\b", "conv"), (r"\bnormalization\b", "norm"))
ENCODER_NAMES = (
    (r"\bo_proj\b", "output"),
    (r"\blayernorm_before\b", "attention_norm"),
    (r"\blayernorm_after\b", "mlp_norm"),
    (r"\bmlp\.fc1\b", "mlp.0"),
    (r"\bmlp\.fc2\b", "mlp.2"),
)
HEAD_NAMES = ((r"^\w+\.layernorm\b", "head.pool.norm"), (r"^classifier\b", "head.linear"))


def shaken(model):
    """Return `model` in float64, in evaluation mode, with weights and statistics that no mistake can hide behind."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in model.double().state_dict().items():
            if value.dim() > 1 and not name.endswith("bias_table"):
                fan_in = value[0].numel()
                value.normal_(0, fan_in**-0.5, generator=generator)
            elif name.endswith("running_var") or ("norm" in name.lower() and name.endswith("weight")):
                value.uniform_(0.5, 1.5, generator=generator)
            elif value.is_floating_point():
                value.normal_(0, 0.3, generator=generator)
    return model.eval()


def renamed(state, rules):
    """Return `state` under our names: `rules` are (pattern, replacement) in order; q, k and v are stacked."""
    result = {}
    for name, value in state.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        part = re.search(r"\b(q_proj|k_proj|v_proj|self\.query|self\.key|self\.value)\b", name)
        if part is None:
            result[name] = value
        else:  # they come in this order
            name = name.replace(part[0], "qkv")
            result[name] = torch.cat([result[name], value]) if name in result else value
    return result


def lettered(match):
    """Name a block of a stage, "0" and "1" -> "stage1b"."""
    return f"stage{int(match[1]) + 1}{ascii_lowercase[int(match[2])]}"


def numbered(name, first):
    """A replacement that names a block by its number, counted from `first`."""
    return lambda match: f"{name}{int(match[1]) + first}"


def ours(name, shape, reference, rules):
    """Return our model with the reference's weights, in float64."""
    model = build(name, "image", shape, CLASSES).double().eval()
    assert parameters(model) == parameters(reference)
    model.load_state_dict(renamed(reference.state_dict(), rules))
    return model


def images(*shape):
    return torch.randn(2, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "layer_type", "depths", "expansion"),
    [
        ("resnet-18", "basic", (2, 2, 2, 2), 1),
        ("resnet-34", "basic", (3, 4, 6, 3), 1),
        ("resnet-50", "bottleneck", (3, 4, 6, 3), 4),
    ],
)
def test_resnet(name, layer_type, depths, expansion):
    config = transformers.ResNetConfig(
        layer_type=layer_type,
        depths=depths,
        hidden_sizes=[width * expansion for width in (64, 128, 256, 512)],
        num_labels=CLASSES,
    )
    reference = shaken(transformers.ResNetForImageClassification(config))
    rules = (
        *CONV_NAMES,
        (r"^resnet\.embedder\.embedder\b", "stem"),
        (r"^resnet\.encoder\.stages\.(\d+)\.layers\.(\d+)", lettered),
        (r"\blayer\.0\b", "first"),
        (r"\blayer\.1\b", "second"),
        (r"\blayer\.2\b", "third"),
        (r"^classifier\.1\b", "head.linear"),
    )
    x = images(3, 72, 80)
    torch.testing.assert_close(ours(name, (3, 72, 80), reference, rules)(x), reference(x).logits)


@torch.no_grad()
def test_mobilenet_v2():
    # TensorFlow's padding is not PyTorch's, its eps is 0.001
    config = transformers.MobileNetV2Config(tf_padding=False, layer_norm_eps=1e-5, num_labels=CLASSES)
    reference = shaken(transformers.MobileNetV2ForImageClassification(config))
    rules = (
        *CONV_NAMES,
        (r"^mobilenet_v2\.conv_stem\.first_conv\b", "stem"),
        (r"^mobilenet_v2\.conv_stem\b", "bneck1"),
        (r"^mobilenet_v2\.layer\.(\d+)", numbered("bneck", 2)),
        (r"^mobilenet_v2\.conv_1x1\b", "conv"),
        (r"\bexpand_1x1\b", "expand"),
        (r"\bconv_3x3\b", "depthwise"),
        (r"\breduce_1x1\b", "project"),
        (r"^classifier\b", "head.linear"),
    )
    x = images(3, 64, 96)
    torch.testing.assert_close(ours("mobilenet-v2", (3, 64, 96), reference, rules)(x), reference(x).logits)


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "width", "heads", "side", "patch"),
    [
        ("vit-tiny", 192, 3, 224, 16),
        ("vit-tiny", 192, 3, 32, 4),
        ("vit-small", 384, 6, 80, 16),
        pytest.param("vit-base", 768, 12, 80, 16, marks=pytest.mark.slow),
    ],
)
def test_vit(name, width, heads, side, patch):
    config = transformers.ViTConfig(
        hidden_size=width,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        layer_norm_eps=1e-6,
        image_size=side,
        patch_size=patch,
        num_labels=CLASSES,
    )
    reference = shaken(transformers.ViTForImageClassification(config))
    rules = (
        *ENCODER_NAMES,
        *HEAD_NAMES,
        (r"^vit\.embeddings\.cls_token", "embedding.class_token"),
        (r"^vit\.embeddings\.position_embeddings", "embedding.positions"),
        (r"^vit\.embeddings\.patch_embeddings\b", "embedding"),
        (r"^vit\.layers\.(\d+)", numbered("encoder", 1)),
    )
    x = images(3, side, side)
    torch.testing.assert_close(ours(name, (3, side, side), reference, rules)(x), reference(x).logits)


SWIN_NAMES = (
    *ENCODER_NAMES,
    *HEAD_NAMES,
    (r"^swin\.embeddings\.patch_embeddings\b", "embedding"),
    (r"^swin\.embeddings\b", "embedding"),
    (r"^swin\.encoder\.layers\.(\d+)\.blocks\.(\d+)", lettered),
    (r"^swin\.encoder\.layers\.(\d+)\.downsample\b", numbered("merge", 1)),
    (r"\brelative_position_bias\.relative_position_bias_table\b", "position_bias"),
)


@torch.no_grad()
def test_swin_at_224():
    reference = shaken(transformers.SwinForImageClassification(transformers.SwinConfig(num_labels=CLASSES)))
    x = images(3, 224, 224)
    torch.testing.assert_close(ours("swin-t", (3, 224, 224), reference, SWIN_NAMES)(x), reference(x).logits)


@torch.no_grad()
@pytest.mark.parametrize("shape", [(3, 32, 32), (3, 32, 64), (3, 64, 64)])
def test_swin_on_small_images(shape):
    """The reference can shrink a window but not its table of biases: it goes up to the third stage."""
    config = transformers.SwinConfig(
        image_size=shape[1:], patch_size=2, window_size=4, depths=(2, 2, 6), num_heads=(3, 6, 12), num_labels=CLASSES
    )
    reference = shaken(transformers.SwinForImageClassification(config))
    model = build("swin-t", "image", shape, CLASSES).double().eval()[:13]
    state = renamed(reference.state_dict(), SWIN_NAMES)
    model.load_state_dict({name: value for name, value in state.items() if not name.startswith("head.")})
    x = images(*shape)
    torch.testing.assert_close(reference.swin.layernorm(model(x)), reference.swin(x).last_hidden_state)


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "depth", "width", "heads"),
    [
        ("text-transformer-6", 6, 256, 4),
        pytest.param("text-transformer-12", 12, 768, 12, marks=pytest.mark.slow),
    ],
)
def test_text_transformer(name, depth, width, heads):
    """From the embedding to the last norm it is RoBERTa with the norms in front; embedding and pooling are ours."""
    config = transformers.RobertaPreLayerNormConfig(
        vocab_size=30,
        num_hidden_layers=depth,
        hidden_size=width,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        layer_norm_eps=1e-6,
    )
    reference = shaken(transformers.RobertaPreLayerNormModel(config, add_pooling_layer=False))
    rules = (
        (r"^encoder\.layer\.(\d+)", numbered("encoder", 1)),
        (r"\battention\.LayerNorm\b", "attention_norm"),
        (r"\bintermediate\.LayerNorm\b", "mlp_norm"),
        (r"\battention\.output\.dense\b", "attention.output"),
        (r"\bintermediate\.dense\b", "mlp.0"),
        (r"(?<!attention\.)\boutput\.dense\b", "mlp.2"),
        (r"^LayerNorm\b", "head.pool.norm"),
    )
    model = build(name, "tokens", (12,), CLASSES, 30).double().eval()
    state = renamed(reference.state_dict(), rules)
    state = {key: value for key, value in state.items() if not key.startswith("embeddings.")}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert set(missing) == {"embedding.tokens.weight", "embedding.positions", "head.linear.weight", "head.linear.bias"}

    ids = torch.randint(1, 30, (3, 12), generator=torch.Generator().manual_seed(1))
    ids[0, 5:], ids[1, 11:] = 0, 0
    real = ids.ne(0)
    embedded = model[0](ids)
    encoded = reference.encoder(embedded, attention_mask=real[:, None, None, :]).last_hidden_state
    normed = reference.LayerNorm(encoded)
    for row in range(3):
        mean = normed[row, real[row]].mean(dim=0)
        expected = F.linear(mean, model.head.linear.weight, model.head.linear.bias)
        torch.testing.assert_close(model(ids)[row], expected)
