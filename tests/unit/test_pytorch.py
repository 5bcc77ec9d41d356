"""Networks from and to PyTorch: the same weights, the same logits, or a clear refusal."""

import sys
import warnings

import numpy as np
import pytest

import refmmr as rm
from refmmr import Conv2d, Flatten, Linear

REASON = 'PyTorch is not installed: pip install "refmmr[torch]"'


def test_without_pytorch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    message = r'needs the package torch: pip install "refmmr\[torch\]"'
    with pytest.raises(ImportError, match=f"to_torch: {message}"):
        rm.to_torch(rm.Network.mlp([2, 3, 2], rng=0))
    with pytest.raises(ImportError, match=f"from_torch: {message}"):
        rm.from_torch(None)


pytestmark = pytest.mark.torch


@pytest.fixture
def torch():
    torch = pytest.importorskip("torch", reason=REASON)
    torch.manual_seed(0)
    return torch


def conv_net(padding=1):
    rng = np.random.default_rng(0)
    first = rm.Conv2d(rng.normal(size=(4, 2, 3, 4)), rng.normal(size=4), (2, 1), padding)
    shape = first.output_shape((2, 7, 6))
    last = rm.Linear(rng.normal(size=(3, np.prod(shape))), rng.normal(size=3))
    return rm.Network([first, rm.Flatten(), last], (2, 7, 6))


NETWORKS = {
    "dense": rm.Network.mlp([3, 5, 4, 2], rng=0),
    "lenet": rm.Network.lenet_small((1, 28, 28), 10, rng=0),
    "odd lenet": rm.Network.lenet_small((3, 7, 9), 4, rng=0),
    "valid": conv_net(0),
    "asymmetric": conv_net(((0, 2), (1, 0))),
}


def equal(one, other):
    pairs = zip(one.parameters, other.parameters, strict=True)
    return all(
        (a == b).all() and a.dtype == b.dtype for p, q in pairs for a, b in zip(p, q, strict=True)
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", NETWORKS)
def test_there_and_back(torch, name, dtype):
    net = NETWORKS[name].astype(dtype)
    module = rm.to_torch(net)
    again = rm.from_torch(module, net.input_shape)
    assert equal(net, again)
    X = np.random.default_rng(1).random((9, *net.input_shape)).astype(dtype)
    with torch.no_grad():
        expected = module(torch.from_numpy(X)).numpy()
    scale = np.abs(expected).max()
    tolerance = 1e-6 if dtype == np.float32 else 1e-14
    assert np.abs(net(X) - expected).max() <= tolerance * scale
    assert np.abs(again(X) - expected).max() <= tolerance * scale


def logits(torch, module, X):
    module.eval()
    with torch.no_grad():
        return module(torch.from_numpy(X)).numpy()


def randomise(torch, module):
    """Batch normalisations as after a training."""
    for part in module.modules():
        if hasattr(part, "running_mean") and part.running_mean is not None:
            part.running_mean.uniform_(-1, 1)
            part.running_var.uniform_(0.5, 2)
    return module.double()


def test_everything_that_is_folded_or_left_out(torch):
    nn = torch.nn
    module = nn.Sequential(
        nn.Sequential(nn.Conv2d(2, 4, 3, padding="same", bias=False), nn.BatchNorm2d(4), nn.ReLU()),
        nn.Dropout2d(), nn.Identity(),
        nn.ZeroPad2d((1, 0, 2, 0)), nn.Conv2d(4, 3, (2, 3), (2, 1), (1, 0)), nn.ReLU(),
        nn.Flatten(), nn.Linear(3 * 5 * 6, 8), nn.BatchNorm1d(8, affine=False), nn.ReLU(),
        nn.Dropout(0.3), nn.Linear(8, 3),
    )  # fmt: skip
    module = randomise(torch, module)
    net = rm.from_torch(module, (2, 7, 7))
    assert [type(layer) for layer in net.layers] == [Conv2d, Conv2d, Flatten, Linear, Linear]
    X = np.random.default_rng(0).random((6, 2, 7, 7))
    np.testing.assert_allclose(net(X), logits(torch, module, X), rtol=1e-11, atol=1e-11)


def test_normalised_inputs(torch):
    nn = torch.nn
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 9, 2))
    module = module.double()
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    net = rm.from_torch(module, (3, 5, 5), normalize=(mean, std))
    X = np.random.default_rng(0).random((6, 3, 5, 5))
    Z = (X - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    np.testing.assert_allclose(net(X), logits(torch, module, Z), rtol=1e-11, atol=1e-11)
    dense = nn.Sequential(nn.Linear(4, 2)).double()
    net = rm.from_torch(dense, normalize=(0.5, 0.25))
    X = X.reshape(-1)[:8].reshape(2, 4)
    np.testing.assert_allclose(net(X), logits(torch, dense, (X - 0.5) / 0.25), rtol=1e-11)


def test_half_precision_is_widened(torch):
    for dtype in (torch.float16, torch.bfloat16):
        module = torch.nn.Sequential(torch.nn.Linear(3, 2)).to(dtype)
        net = rm.from_torch(module)
        assert net.dtype == np.float32
        assert (net.parameters[0][0] == module[0].weight.detach().float().numpy()).all()


def test_weights_are_copies(torch):
    module = torch.nn.Sequential(torch.nn.Linear(3, 2))
    net = rm.from_torch(module)
    before = net.parameters[0][0].copy()
    with torch.no_grad():
        module[0].weight.zero_()
    assert (net.parameters[0][0] == before).all()
    module = rm.to_torch(net)
    with torch.no_grad():
        module[0].weight.zero_()
    assert (net.parameters[0][0] == before).all()


def test_a_module_in_two_places_is_there_twice(torch):
    nn = torch.nn
    relu, twin = nn.ReLU(), nn.Linear(4, 4)
    module = nn.Sequential(
        nn.Linear(3, 4), relu, twin, nn.Sequential(relu, twin), relu, nn.Linear(4, 2)
    ).double()
    net = rm.from_torch(module)
    assert len(net.layers) == 4
    X = np.random.default_rng(0).normal(size=(9, 3))
    np.testing.assert_allclose(net(X), logits(torch, module, X), rtol=1e-12, atol=1e-12)


def test_flatten_before_the_first_linear_needs_no_input_shape(torch):
    nn = torch.nn
    net = rm.from_torch(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)))
    assert net.input_shape == (12,)
    images = rm.from_torch(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), (3, 2, 2))
    assert images.input_shape == (3, 2, 2)


def test_a_sequential_by_another_name(torch):
    class Classifier(torch.nn.Sequential):
        def __init__(self):
            super().__init__(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))

    class Other(Classifier):
        def forward(self, x):
            return -super().forward(x)

    assert rm.from_torch(Classifier()).input_shape == (3,)
    module = Other().double()
    X = np.random.default_rng(0).normal(size=(9, 3))
    np.testing.assert_allclose(rm.from_torch(module)(X), logits(torch, module, X), rtol=1e-12)


def test_training_mode_is_read_as_evaluation_and_kept(torch):
    nn = torch.nn
    module = nn.Sequential(
        nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout(), nn.Linear(4, 2)
    )
    module = randomise(torch, module).train()
    net = rm.from_torch(module)
    assert module.training
    assert module[1].num_batches_tracked == 0
    X = np.random.default_rng(0).normal(size=(9, 3))
    np.testing.assert_allclose(net(X), logits(torch, module, X), rtol=1e-12, atol=1e-12)


def test_random_numbers_of_pytorch_stay_as_they_are(torch):
    before = torch.get_rng_state()
    rm.to_torch(NETWORKS["lenet"])
    assert (torch.get_rng_state() == before).all()


def test_a_single_linear(torch):
    net = rm.from_torch(torch.nn.Linear(3, 2))
    assert net.input_shape == (3,)


def test_state_dict_through_safetensors(torch, tmp_path):
    load_file = pytest.importorskip("safetensors.torch").load_file
    net = NETWORKS["odd lenet"].astype(np.float32)
    rm.save(net, tmp_path / "net.safetensors")
    module = rm.to_torch(NETWORKS["odd lenet"]).float()
    for parameter in module.parameters():
        torch.nn.init.zeros_(parameter)
    module.load_state_dict(load_file(tmp_path / "net.safetensors"))
    assert equal(rm.from_torch(module, net.input_shape), net)


def modules_with_a_forward(torch):
    nn, F = torch.nn, torch.nn.functional

    class Block(nn.Module):
        """A residual block, as torchvision has it."""

        def __init__(self, n_in, n_out, stride):
            super().__init__()
            self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False)
            self.bn1, self.bn2 = nn.BatchNorm2d(n_out), nn.BatchNorm2d(n_out)
            self.conv2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False)
            self.relu = nn.ReLU(inplace=True)
            self.down = nn.Conv2d(n_in, n_out, 1, stride) if stride > 1 else None

        def forward(self, x):
            out = self.relu(self.bn1(self.conv1(x)))
            out = self.bn2(self.conv2(out))
            out += x if self.down is None else self.down(x)
            return self.relu(out)

    class ResNet(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(2, 4, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(2))
            self.blocks = nn.Sequential(Block(4, 4, 1), Block(4, 6, 2))
            self.pool, self.last = nn.AdaptiveAvgPool2d((1, 1)), nn.Linear(6, 3)

        def forward(self, x):
            x = self.pool(self.blocks(self.stem(x)))
            return self.last(torch.flatten(x, 1))

    class Functions(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Conv2d(2, 4, 3, padding=1), nn.Linear(4 * 16, 3)
            self.scale = nn.Parameter(torch.rand(4, 1, 1))
            self.register_buffer("mean", torch.rand(2, 1, 1))

        def forward(self, x):
            h = self.one((x - self.mean) / 0.3) * self.scale
            a, b = h.chunk(2, dim=1)
            h = torch.cat([F.leaky_relu(a, 0.1), torch.maximum(a, b), b.clamp(-1, 1)], dim=1)
            h = F.max_pool2d(F.relu(h), 2) + F.avg_pool2d(h[:, :, ::1], kernel_size=2).abs()
            h = h[:, :4].permute(0, 2, 3, 1).transpose(1, 3).contiguous()
            h = F.dropout(h, training=self.training).view(x.size(0), -1)
            return F.log_softmax(self.two(h.reshape(h.shape[0], 64)), dim=1)

    class Own(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    return {
        "residual": (ResNet(), (2, 8, 8)),
        "functions": (Functions(), (2, 8, 8)),
        "own class": (nn.Sequential(Own(3, 4), nn.ReLU(), nn.Linear(4, 2)), (3,)),
        "modules": (
            nn.Sequential(
                nn.Conv2d(2, 4, 3, groups=2, dilation=2), nn.PReLU(4), nn.AvgPool2d(2, padding=1),
                nn.ReLU6(), nn.ConvTranspose2d(4, 2, 2, 2), nn.Hardtanh(), nn.ZeroPad2d(1),
                nn.MaxPool2d(3, 2, 1), nn.LeakyReLU(0.2), nn.AdaptiveMaxPool2d(2), nn.Flatten(2),
                nn.Unflatten(2, (2, 2)), nn.Flatten(), nn.Linear(8, 3), nn.Softmax(1),
            ),
            (2, 8, 8),
        ),
    }  # fmt: skip


@pytest.mark.parametrize("name", ["residual", "functions", "own class", "modules"])
@pytest.mark.filterwarnings("ignore:.*(written as|is left out)")
def test_any_forward_that_can_be_traced(torch, name):
    module, shape = modules_with_a_forward(torch)[name]
    module = randomise(torch, module)
    net = rm.from_torch(module, shape)
    X = np.random.default_rng(0).normal(size=(6, *shape))
    found, expected = net(X), logits(torch, module, X)
    if name == "functions":
        found = found - np.log(np.exp(found).sum(axis=1, keepdims=True))
    if name == "modules":
        found = np.exp(found) / np.exp(found).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


def test_two_front_ends_agree(torch, tmp_path):
    """The same module by its forward and by its ONNX file."""
    pytest.importorskip("onnx")
    module, shape = modules_with_a_forward(torch)["residual"]
    module = randomise(torch, module).float().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        example = torch.randn(1, *shape)
        torch.onnx.export(module, (example,), tmp_path / "m.onnx", dynamo=False)
        nets = rm.load(tmp_path / "m.onnx"), rm.from_torch(module, shape)
    assert nets[0].unit_shapes == nets[1].unit_shapes
    X = np.random.default_rng(0).normal(size=(6, *shape)).astype(np.float32)
    expected = logits(torch, module, X)
    for net in nets:
        np.testing.assert_allclose(net(X), expected, rtol=1e-4, atol=1e-5)


def refusals(torch):
    nn = torch.nn

    hooked = nn.Linear(2, 2)
    hooked.register_forward_hook(lambda *_: None)
    other = nn.ReLU()
    other.forward = lambda x: -x
    negative = nn.BatchNorm1d(2)
    negative.running_var.fill_(-1)

    class Decides(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    class Product(nn.Module):
        def forward(self, x):
            return x * x

    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.relu = nn.Linear(2, 2), nn.ReLU(inplace=True)

        def forward(self, x):
            h = self.layer(x)
            return h.view(1, 2) + self.relu(h)

    class Sorts(nn.Module):
        def forward(self, x):
            return x.sort()

    last = (nn.Flatten(), nn.Linear(36, 2))
    image = (1, 6, 6)
    return {
        "number": (3, None, TypeError, "module: expected a torch.nn.Module, got int"),
        "max-pool": (
            nn.Sequential(nn.Conv2d(1, 4, 1), nn.Sequential(nn.MaxPool2d(2, return_indices=True))),
            image, ValueError, r"module: 1\.0: expected return_indices=False, got True",
        ),
        "sigmoid": (
            nn.Sequential(nn.Linear(2, 2), nn.Sigmoid(), nn.Linear(2, 2)), None, ValueError,
            "2: expected nothing behind Sigmoid at 1",
        ),
        "tanh": (
            nn.Sequential(nn.Linear(2, 2), nn.Tanh()), None, ValueError,
            "1: expected Linear, .* got Tanh; instead: train with a piecewise linear one",
        ),
        "sequences": (
            nn.Sequential(nn.Conv1d(1, 2, 3), *last), (1, 9), ValueError,
            "0: expected Linear, .* got Conv1d; instead: export the module with torch.onnx.export",
        ),
        "hook": (nn.Sequential(hooked), None, ValueError, "module: 0: expected a module without"),
        "mode": (
            nn.Sequential(nn.Conv2d(1, 2, 2, padding=1, padding_mode="reflect")), image,
            ValueError, "0: .*padding_mode='reflect'",
        ),
        "flatten": (
            nn.Sequential(nn.Flatten(0), *last), image, ValueError, "0: .*start_dim=0",
        ),
        "own forward": (
            nn.Sequential(nn.Linear(2, 2), nn.Sequential(other)), None, ValueError,
            r"1\.0: expected a module with the forward of its class, got ReLU with another",
        ),
        "decision": (
            Decides(), (2,), ValueError, r"module: expected a forward that torch.fx .*instead: exp",
        ),
        "product": (Product(), (2,), ValueError, "mul: .* product of two values"),
        "in place": (InPlace(), (2,), ValueError, "expected an operation in place on a value that"),
        "unknown": (Sorts(), (2,), ValueError, "sort: expected .* got sort; instead: export"),
        "class before shape": (
            nn.Sequential(nn.Conv2d(1, 1, 1), nn.Tanh()), None, ValueError, "1: expected .*Tanh",
        ),
        "features": (
            nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(1)), None, ValueError,
            "1: expected 4 features, got 1",
        ),
        "norm of images": (
            nn.Sequential(nn.Linear(2, 4), nn.BatchNorm2d(4)), None, ValueError,
            r"1: expected inputs of shape \(channels, height, width\), got \(4,\)",
        ),
        "norm of vectors": (
            nn.Sequential(nn.Conv2d(1, 4, 1), nn.BatchNorm1d(4)), image, ValueError,
            r"1: expected inputs of shape \(features,\), got \(4, 6, 6\)",
        ),
        "variance": (
            nn.Sequential(nn.Linear(2, 2), negative), None, ValueError,
            "1: expected variances above 0, got -",
        ),
        "meta": (
            nn.Sequential(nn.Linear(2, 2, device="meta")), None, ValueError,
            "0: expected weights, got none on the device meta",
        ),
        "complex": (
            nn.Sequential(nn.Linear(2, 2, dtype=torch.complex64)), None, ValueError,
            "0: W: expected real numbers",
        ),
        "negative pad": (
            nn.Sequential(nn.ZeroPad2d(-1), nn.Conv2d(1, 1, 1)), image, ValueError,
            "0: expected padding of at least 0",
        ),
        "statistics": (
            nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, track_running_stats=False)), None,
            ValueError, "1: .*track_running_stats=False",
        ),
        "input shape": (
            nn.Sequential(nn.Conv2d(1, 4, 1), *last), None, ValueError, "input_shape: expected",
        ),
        "wrong shape": (
            nn.Sequential(nn.Linear(2, 2)), (3,), ValueError, r"0: expected inputs of shape \(2,\)",
        ),
        "nan": (nn.Sequential(nan(torch)), None, ValueError, "0: W: expected finite"),
    }  # fmt: skip


def nan(torch):
    module = torch.nn.Linear(2, 2)
    torch.nn.init.constant_(module.weight, np.nan)
    return module


def test_refused(torch):
    for module, shape, error, message in refusals(torch).values():
        with pytest.raises(error, match=message):
            rm.from_torch(module, shape)


@pytest.mark.parametrize(
    ("normalize", "message"),
    [
        (0.5, r"normalize: expected a pair \(mean, std\)"),
        ((0.5, 0), "normalize: expected std without zeros"),
        ((0.5, np.inf), "normalize: expected finite"),
        (((1, 2, 3), 1.0), "module: normalize: expected numbers that broadcast"),
    ],
)
def test_normalize_refused(torch, normalize, message):
    with pytest.raises((TypeError, ValueError), match=message):
        rm.from_torch(torch.nn.Sequential(torch.nn.Linear(2, 2)), normalize=normalize)
