"""harness/task/models/registry.py: names, a user's own file, and what is refused."""

import pytest
import torch
from small_runs import record_all, tiny
from torch import nn

import harness.task.models as package
from harness.errors import ConfigError
from harness.task.models import build, info, names

USERS_FILE = """
from torch import nn

def build(input_shape, num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(input_shape[0], num_classes))

def texts(input_shape, num_classes, vocabulary, norm="batch"):
    embedding = nn.Embedding(vocabulary, 4)
    return nn.Sequential(embedding, nn.Flatten(), nn.Linear(4 * input_shape[0], num_classes))

def image(input_shape, num_classes):
    channels, height, width = input_shape
    front = nn.Sequential(nn.Conv2d(channels, 4, 3, padding=1), nn.ReLU(), nn.Flatten())
    return nn.Sequential(front, nn.Linear(4 * height * width, num_classes))

def plain(input_shape, num_classes):
    return nn.Linear(3, num_classes)

def single(input_shape, num_classes):
    return nn.Sequential(nn.Linear(3, num_classes))

number = 3
"""


@pytest.fixture
def users_file(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(USERS_FILE)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "mine.py"


def test_names_are_file_names_with_dashes():
    assert "vgg-5" in names()
    assert "mobilenet-v3-large" in names()
    assert not {"blocks", "registry", "describe"} & set(names())


def test_adding_a_model_is_adding_a_file(tmp_path, monkeypatch):
    (tmp_path / "tiny_net_0.py").write_text(
        "from torch import nn\n"
        "from harness.task.models.model_info import ModelInfo\n"
        "INFO = ModelInfo('Tiny', 'none', ('signal',))\n"
        "def build(input_shape, num_classes, **_):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(6, num_classes))\n"
    )
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    assert "tiny-net-0" in names()
    assert len(build("tiny-net-0", "signal", (2, 3), 4)) == 2


def test_unknown_model_gets_a_suggestion():
    with pytest.raises(ConfigError, match="unknown model 'vgg5'; did you mean 'vgg-5'"):
        build("vgg5", "image", (3, 32, 32), 10)


def test_wrong_kind_names_both_and_the_models_that_fit():
    with pytest.raises(ConfigError, match=r"'vgg-5'.*'tokens'.*text-transformer-6"):
        build("vgg-5", "tokens", (12,), 4, 30)


def test_unknown_kind_is_refused():
    with pytest.raises(ConfigError, match="models for video: none"):
        build("vgg-5", "video", (3, 8, 32, 32), 4)


@pytest.mark.parametrize("shape", [(32, 32), (3, 0, 32), (3, 8, 32, 32)])
def test_shape_that_is_not_of_the_kind_is_refused(shape):
    with pytest.raises(ConfigError, match="not that of one sample of kind 'image'"):
        build("vgg-5", "image", shape, 10)


def test_unknown_norm_is_refused():
    with pytest.raises(ConfigError, match="'layer' for model 'vit-small'"):
        build("vit-small", "image", (3, 32, 32), 10, norm="layer")


def test_no_classes_are_refused():
    with pytest.raises(ConfigError, match="at least one class, got 0"):
        build("vgg-5", "image", (3, 32, 32), 0)


@pytest.mark.usefixtures("users_file")
def test_a_users_own_model_is_loaded_from_its_file():
    model = build("./mine.py:build", "signal", (7, 1), 3)
    assert isinstance(model, nn.Sequential)
    assert model(torch.zeros(2, 7, 1)).shape == (2, 3)
    assert info("./mine.py:build").kinds == ("image", "signal", "tokens")


@pytest.mark.usefixtures("users_file")
def test_a_users_function_gets_the_vocabulary_if_it_names_it():
    assert build("mine.py:texts", "tokens", (6,), 3, 50)[0].num_embeddings == 50


def test_a_users_file_is_found_by_its_full_path(users_file):
    assert len(build(f"{users_file}:build", "signal", (7, 1), 3)) == 2


@pytest.mark.usefixtures("users_file")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./other.py:build", "there is no file .*other.py"),
        ("./mine.py:biuld", "no function 'biuld'; did you mean 'build'"),
        ("./mine.py:number", "no function 'number'"),
        ("./mine.py:plain", "returned a Linear, not an nn.Sequential"),
        ("./mine.py:single", "at least 2"),
    ],
)
def test_a_users_mistake_is_named(name, message):
    with pytest.raises(ConfigError, match=message):
        build(name, "signal", (7, 1), 3)


@pytest.mark.usefixtures("users_file")
@pytest.mark.parametrize("mode", ["timing", "learn"])
def test_a_users_own_model_runs_whole_and_split(tmp_path, mode):
    """On digits, 8x8 in 10 classes, the whole model has 40 + 2,570 parameters, its front 40."""
    task = {"data": "digits", "model": "./mine.py:image", "partition": {"samples": 160}, "test_samples": 32}
    methods = ["fedavg", {"name": "splitfed_v1", "split_point": 1}]
    whole, split = record_all(tmp_path / "runs", tiny(mode=mode, task=task, methods=methods))
    assert whole.summary["makespan_s"] > 0
    # two devices each send their weights up once, with some bytes of header
    assert 0 <= whole.summary["payload_up_bytes"] - 2 * 4 * 2610 < 1000
    # 80 samples per device: an activation of 4 x 64 numbers and a label of 8 bytes each; then 40 weights
    assert 0 <= split.summary["payload_up_bytes"] - 2 * (80 * (4 * 256 + 8) + 4 * 40) < 5000


@pytest.mark.usefixtures("users_file")
def test_a_users_own_model_is_read_again_when_its_file_has_changed(users_file):
    assert len(build("./mine.py:build", "signal", (7, 1), 3)) == 2
    users_file.write_text(USERS_FILE.replace("nn.Flatten(), ", "nn.Flatten(), nn.ReLU(), "))
    assert len(build("./mine.py:build", "signal", (7, 1), 3)) == 3
