import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision import models
from typer.testing import CliRunner

from entropi.host import cli
from entropi.host.networks import archs, cost

OTHERS = ["vgg16_bn", "mobilenet_v2", "shufflenet_v2_x1_0", "swin_t", "regnet_y_400mf", "googlenet"]

# As the reference int8 model of MLPerf Tiny lists them: output channels, input channels, height, width.
RESNET8_SHAPES = [
    (16, 3, 3, 3), (16, 16, 3, 3), (16, 16, 3, 3), (32, 16, 3, 3), (32, 32, 3, 3), (32, 16, 1, 1), (64, 32, 3, 3),
    (64, 64, 3, 3), (64, 32, 1, 1),
]  # fmt: skip

DOCS = (Path(__file__).parents[2] / "docs" / "networks.md").read_text()
NUMBERS = itertools.count()
GOOD = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.register_buffer("scale", torch.arange(1.0, 5.0), persistent=False)
        self.conv = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4, classes)

    def forward(self, x):
        return self.head(self.conv(x).mean((2, 3)) * self.scale)
"""
SMALL = "nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4), nn.ReLU(), {})"


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Writes a module into the current directory; returns its name, which no other test uses."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])

    def write(text: str) -> str:
        name = f"nets_of_test_archs_{next(NUMBERS)}"
        (tmp_path / f"{name}.py").write_text("import torch\nfrom torch import nn\n" + text)
        return name

    return write


def says(call, *arguments) -> str:
    """The one line of the ValueError that the call raises."""
    with pytest.raises(ValueError) as raised:
        call(*arguments)
    text = str(raised.value)
    assert "\n" not in text and ";" in text
    return text


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_large", "mobilenet_v3_small", *OTHERS[:3]])
def test_parameters_and_macs_are_those_torchvision_publishes(name):
    published = models.get_model_weights(name).DEFAULT.meta
    figures = cost.summary(name, 1000, (3, 224, 224))
    assert figures.parameters == published["num_params"]
    assert figures.macs == pytest.approx(1e9 * published["_ops"], rel=0.01)


@pytest.mark.parametrize(
    ("name", "features", "millions"),
    [
        ("resnet18", 512, 37.0), ("resnet18-cifar", 512, 555.4), ("resnet18-cifar-pool", 512, 140.2),
        ("mobilenet_v3_large", 1280, 7.1), ("resnet8", 64, 12.5),
    ],
)  # fmt: skip
def test_figures_at_32x32(name, features, millions):
    figures = cost.summary(name, 5, (3, 32, 32))
    assert round(figures.macs / 1e6, 1) == millions
    assert (figures.features, figures.head_parameters) == (features, 5 * features + 5)


def test_resnet8_is_that_of_mlperf_tiny():
    model = archs.build("resnet8", 10)
    weights = {name: p for name, p in model.named_parameters() if p.ndim == 4}
    assert sorted(tuple(w.shape) for w in weights.values()) == sorted(RESNET8_SHAPES)
    statistics = [b for b in model.buffers() if b.ndim]
    assert cost.parameters(model) + sum(b.numel() for b in statistics) == 78_666  # as Keras counts


def test_stems_of_resnet18():
    cifar, pooled = archs.build("resnet18-cifar", 3), archs.build("resnet18-cifar-pool", 3)
    x = torch.zeros(1, 3, 32, 32)
    with torch.no_grad():
        for model, size in ((cifar, 32), (pooled, 16)):
            assert model.conv1(x).shape == (1, 64, 32, 32)
            assert model.maxpool(model.conv1(x)).shape == (1, 64, size, size)
    assert cifar.state_dict().keys() == pooled.state_dict().keys() == archs.build("resnet18", 3).state_dict().keys()


@pytest.mark.parametrize("name", [*archs.ARCHS, *OTHERS])
def test_every_network_comes_back_from_its_state_dict(name):
    """What a ladder does: built without weights, then given those of the file."""
    torch.manual_seed(0)
    model = archs.build(name, 7).eval()
    with torch.device("meta"):
        restored = archs.build(name, 7).eval()
    restored.load_state_dict(model.state_dict(), assign=True)
    encoder, head = archs.split(restored)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = model(x)
        assert torch.equal(restored(x), expected)
        assert encoder(x).shape == (2, head.in_features)
        assert torch.equal(head(encoder(x)), expected)
    archs.check_input(name, 7, (3, 32, 32))


def test_split_leaves_the_model_as_it_was():
    model = archs.build("resnet8", 7)
    encoder, head = archs.split(model)
    assert isinstance(model.fc, torch.nn.Linear) and model.fc is not head
    assert model.stem[0].weight is not encoder.stem[0].weight


@pytest.mark.parametrize("name", ["resnet19", "resnet18_cifar", "mobilenetv3_large", "vgg16bn"])
def test_unknown_network_lists_close_ones(name):
    close = {"resnet19": "resnet18", "resnet18_cifar": "resnet18-cifar", "vgg16bn": "vgg16_bn"}
    text = says(archs.check, name)
    assert f"{name!r} is not known; choose from {close.get(name, 'mobilenet_v3_large')}" in text
    assert "entropi archs --all" in text
    assert says(archs.build, name, 10) == text


def test_unlike_any_name_lists_ours():
    assert f"choose from {', '.join(archs.ARCHS)} or" in says(archs.check, "?")


def test_network_without_a_linear():
    assert "SqueezeNet has no Linear" in says(archs.check, "squeezenet1_1")
    assert "squeezenet1_1" not in archs.classifiers()


@pytest.mark.parametrize(("name", "size"), [("alexnet", 32), ("vit_b_16", 32), ("vgg16_bn", 31)])
def test_images_that_a_network_does_not_take(name, size):
    text = says(archs.check_input, name, 10, (3, size, size))
    assert text.startswith(f"network {name!r} does not take 3x{size}x{size} images (")
    figures = cost.summary(name, 10, (3, size, size))
    assert (figures.macs, figures.problem) == (None, text)
    archs.check_input(name, 10, (3, 224, 224))


def test_the_users_own(own):
    spec = f"{own(GOOD)}:Net"
    archs.check(spec)
    archs.check_input(spec, 6, (3, 17, 9))
    model = archs.build(spec, 6).eval()
    with torch.device("meta"):
        restored = archs.build(spec, 6).eval()
    restored.load_state_dict(model.state_dict(), assign=True)
    x = torch.randn(2, 3, 17, 9)
    with torch.no_grad():
        assert torch.equal(restored(x), model(x))
    assert cost.summary(spec, 6, (3, 17, 9)) == cost.Summary(spec, 112 + 30, 4, 30, 108 * 15 * 7 + 24, None)


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ("factory = 3", "is of type int; name a function"),
        ("factori = None", "has no 'factory'; did you mean factori?"),
        ("def factory(): pass", "raised TypeError: .* when called with 2; a factory takes the number of classes"),
        ("def factory(classes): raise KeyError('a\\nb')", "raised KeyError: "),
        ("def factory(classes): return 'net'", "returned an object of type str; a factory returns a torch.nn.Module"),
        ("def factory(classes): return nn.Conv2d(3, classes, 3)", "Conv2d has no Linear layer; "),
        ("def factory(classes): return nn.Sequential(nn.Linear(3, 10))", "has 10 outputs in '0', .* 2 classes"),
        ("def factory(classes): return nn.LazyLinear(classes)", "has lazy layers; give"),
        ("import nowhere_to_be_found", "importing .* raised ModuleNotFoundError: .*nowhere_to_be_found"),
        ("1 +", "importing .* raised SyntaxError"),
    ],
)
def test_what_is_wrong_with_the_users_own(own, body, complaint):
    spec = f"{own(body)}:factory"
    text = says(archs.check, spec)
    assert spec in text and re.search(complaint, text)


@pytest.mark.parametrize(
    "body",
    [
        f"factory = lambda classes: {SMALL.format('nn.Linear(4, classes), nn.LogSoftmax(1)')}",
        f"factory = lambda classes: {SMALL.format('nn.Linear(4, classes), nn.ReLU(inplace=True)')}",
        f"factory = lambda classes: {SMALL.format('nn.Linear(4, classes), nn.Dropout()')}",
        f"""
class factory(nn.Module):  # the head is defined first
    def __init__(self, classes):
        super().__init__()
        self.head = nn.Linear(2, classes)
        self.body = {SMALL.format("nn.Linear(4, 2)")}
    def forward(self, x):
        return self.head(self.body(x))
""",
        f"""
class factory(nn.Module):  # a tuple while training
    def __init__(self, classes):
        super().__init__()
        self.body = {SMALL.format("nn.Linear(4, classes)")}
    def forward(self, x):
        return (self.body(x), x) if self.training else self.body(x)
""",
        """
class factory(nn.Module):  # a result for every position
    def __init__(self, classes):
        super().__init__()
        self.head = nn.Linear(3, classes)
    def forward(self, x):
        return self.head(x.flatten(2).mT).mean(1)
""",
    ],
)
def test_the_last_linear_makes_the_output(own, body):
    spec = f"{own(body)}:factory"
    text = says(archs.check_input, spec, 2, (3, 8, 8))
    assert spec in text and "its last Linear, returns; let forward() end with that layer" in text


def test_views_of_the_heads_output_are_allowed(own):
    body = "factory = lambda classes: " + SMALL.format("nn.Linear(4, classes), nn.Flatten(), nn.Identity()")
    archs.check_input(f"{own(body)}:factory", 2, (3, 8, 8))


@given(st.text(":.-/ 0aé", max_size=8), st.text(":.-/ 0aé", max_size=8))
def test_any_malformed_specification_is_one_line(module, attribute):
    spec = f"{module}:{attribute}"
    assert repr(spec) in says(archs.check, spec)


def test_no_torchvision_for_names_of_ours_and_the_current_directory_is_searched(own, tmp_path):
    program = (
        "import sys; from entropi.host.networks import archs; assert sys.argv[2] not in sys.path\n"
        "for name in (*archs.ARCHS, sys.argv[1]): archs.check(name)\n"
        "assert 'torchvision' not in sys.modules"
    )
    arguments = [sys.executable, "-I", "-c", program, f"{own(GOOD)}:Net", str(tmp_path)]
    done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_command(own):
    spec = f"{own(GOOD)}:Net"
    run = CliRunner().invoke
    content = json.loads(run(cli.app, ["archs", "--all", "--json"]).output)
    networks = content["networks"]
    assert [network["name"] for network in networks] == list(archs.ARCHS)
    for n in networks:
        assert f"| `{n['name']}` | {n['parameters']:,} | {n['features']:,} | {n['macs']:,} |" in DOCS
    assert "vgg16_bn" in content["others"] and "resnet18" not in content["others"]
    shown = run(cli.app, ["archs", spec, "alexnet", "--size", "32"]).output
    assert f"{108 * 30 * 30 + 40:,}" in shown and "does not take 3x32x32 images" in " ".join(shown.split())


def test_the_example_in_the_docs(own):
    code = re.search(r"```python\n(.*?)```", DOCS, re.DOTALL)[1]
    archs.check_input(f"{own(code)}:small", 5, (3, 32, 32))
