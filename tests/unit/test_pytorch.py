"""Networks from and to PyTorch: the same weights, the same logits, or a clear refusal."""

import sys

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
    with pytest.raises(ValueError, match=r"module: module: .*Other; what its forward does cannot"):
        rm.from_torch(Other())


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


def refusals(torch):
    nn = torch.nn

    class Linear(nn.Linear):
        """A Linear of somebody's own, which may do anything."""

    hooked = nn.Linear(2, 2)
    hooked.register_forward_hook(lambda *_: None)
    other = nn.ReLU()
    other.forward = lambda x: -x
    negative = nn.BatchNorm1d(2)
    negative.running_var.fill_(-1)

    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(2, 2))

    last = (nn.Flatten(), nn.Linear(36, 2))
    image = (1, 6, 6)
    return {
        "number": (3, None, TypeError, "module: expected a torch.nn.Sequential, got int"),
        "max-pool": (
            nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), nn.Sequential(nn.MaxPool2d(2)), *last),
            image, ValueError, r"module: 2\.0: expected Linear, .* got MaxPool2d; the maximum of",
        ),
        "sigmoid": (nn.Sequential(nn.Linear(2, 2), nn.Sigmoid()), None, ValueError, "1: .*Sigmoid"),
        "own class": (nn.Sequential(Linear(2, 2)), (2,), ValueError, r"0: .*refusals\.<locals>"),
        "hook": (nn.Sequential(hooked), None, ValueError, "module: 0: expected a module without"),
        "groups": (
            nn.Sequential(nn.Conv2d(2, 2, 1, groups=2)), (2, 3, 3), ValueError, "0: .*groups=2",
        ),
        "dilation": (
            nn.Sequential(nn.Conv2d(1, 2, 2, dilation=2)), image, ValueError, "0: .*dilation",
        ),
        "mode": (
            nn.Sequential(nn.Conv2d(1, 2, 2, padding=1, padding_mode="reflect")), image,
            ValueError, "0: .*padding_mode='reflect'",
        ),
        "flatten": (
            nn.Sequential(nn.Flatten(2), *last), image, ValueError, "0: .*start_dim=2",
        ),
        "pad alone": (
            nn.Sequential(nn.ZeroPad2d(1), *last), image, ValueError, "1: expected Conv2d behind",
        ),
        "pad at the end": (
            nn.Sequential(nn.Linear(2, 2), nn.ZeroPad2d(1)), None, ValueError,
            "1: expected Conv2d behind a ZeroPad2d, got the end",
        ),
        "own forward": (
            nn.Sequential(nn.Linear(2, 2), nn.Sequential(other)), None, ValueError,
            r"1\.0: expected a module with the forward of its class, got ReLU with another",
        ),
        "wrapper": (
            Wrapper(), (2,), ValueError, r"module: module: .*Wrapper; .*pass its Sequential, or",
        ),
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
        "unflatten": (
            nn.Sequential(nn.Unflatten(1, (1, 6, 6)), *last), (36,), ValueError, "0: .*Unflatten",
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
        "relu at the end": (
            nn.Sequential(nn.Linear(2, 2), nn.ReLU()), None, ValueError, "expected a layer with",
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
