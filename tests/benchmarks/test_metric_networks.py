"""Optional networks: asked of the packages that have them, and one clear line where they lack."""

import importlib.util
import sys
import types

import numpy as np
import pytest

from alexnet_weights import random_weights
from jscc.benchmarks.frechet import frechet_distance
from jscc.benchmarks.judge import (
    Instruments,
    Judge,
    Wanted,
    add_wanted,
    set_distance,
    wanted_from,
)
from jscc.benchmarks.networks import (
    AlexNetFeatures,
    Dists,
    InceptionFeatures,
    lpips_from_package,
)
from jscc.calibration.lpips import CONVOLUTIONS, Lpips
from jscc.runtime.errors import UnavailableError, UsageError
from jscc.runtime.terminal import Parser

torch = pytest.importorskip("torch", reason="torch is not installed")
SLICES = ("slice1.0", "slice2.3", "slice3.6", "slice4.8", "slice5.10")


def image(seed: int, height: int = 256, width: int = 256) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture
def lend(monkeypatch):
    """Lets a module with the given names be imported."""

    def add(name, **names):
        module = types.ModuleType(name)
        module.__spec__ = importlib.util.spec_from_loader(name, None)
        for key, value in names.items():
            setattr(module, key, value)
        parts = name.split(".")
        for count in range(1, len(parts)):
            parent = ".".join(parts[:count])
            monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
        monkeypatch.setitem(sys.modules, name, module)

    return add


def options(*words):
    parser = Parser()
    add_wanted(parser)
    return parser.parse_args([str(word) for word in words])


@pytest.mark.parametrize(
    ("make", "package", "install"),
    [
        (lpips_from_package, "lpips", "pip install lpips"),
        (Dists, "piq", "pip install piq"),
        (InceptionFeatures, "torchmetrics", "pip install 'torchmetrics"),
    ],
)
def test_a_missing_package_is_one_line(make, package, install):
    if importlib.util.find_spec(package):
        pytest.skip(f"{package} is installed")
    with pytest.raises(UnavailableError, match=f"got no package '{package}'.*{install}") as caught:
        make()
    assert caught.value.code == "E_METRIC_PACKAGE"
    assert "\n" not in str(caught.value)


def test_a_network_that_cannot_be_fetched_is_one_line(lend):
    def fetch():
        raise OSError("<urlopen error no route>\nmore")

    lend("piq", DISTS=fetch)
    with pytest.raises(
        UnavailableError, match="metric 'dists': got '<urlopen error no route>', ex"
    ):
        Dists()


def test_lpips_of_the_package_is_computed_with_its_weights(lend):
    weights = random_weights()
    state = {f"lin{i}.model.1.weight": weights[f"alex.lin{i}.model.1.weight"] for i in range(5)}
    for layer, place in zip(CONVOLUTIONS, SLICES, strict=True):
        for part in ("weight", "bias"):
            state[f"net.{place}.{part}"] = weights[f"{layer.name}.{part}"]

    class Network:
        def __init__(self, *, net, verbose):
            assert (net, verbose) == ("alex", False)

        def state_dict(self):
            return {name: torch.from_numpy(value) for name, value in state.items()}

    lend("lpips", LPIPS=Network)
    first, second = image(1, 64, 70), image(2, 64, 70)
    assert wanted_from(options()).lpips_package
    assert Instruments(Wanted(lpips_package=True)).lpips(first, second) == Lpips(weights)(
        first, second
    )


def test_dists_gets_values_up_to_one(lend):
    def distance(first, second):
        assert first.shape == (1, 3, 40, 50)
        assert first.dtype == torch.float32
        return (first - second).abs().mean()

    lend("piq", DISTS=lambda: distance)
    first, second = image(1, 40, 50), image(2, 40, 50)
    expected = np.mean(np.abs(first / 255 - second / 255))
    judge = Judge(first, Instruments(Wanted(also=("dists",))))
    assert judge(second)["dists"] == pytest.approx(expected, rel=1e-5)


def test_fid_is_the_frechet_distance_of_inceptions_features(lend):
    class Inception(torch.nn.Module):
        def forward(self, patches):
            assert patches.dtype == torch.uint8
            assert patches.shape[1:] == (3, 256, 256)
            wide = patches.float().reshape(len(patches), -1)[:, :2048]
            return wide / 255

    class Fid(torch.nn.Module):
        def __init__(self, feature):
            super().__init__()
            assert feature == 2048
            self.inception = Inception()

    lend("torchmetrics.image.fid", FrechetInceptionDistance=Fid)
    instruments = Instruments(Wanted(also=("fid",)))
    sent, received = [image(i, 512, 300) for i in (1, 2)], [image(i, 512, 300) for i in (3, 4)]
    distance = set_distance(
        [instruments.features(each) for each in sent],
        [instruments.features(each) for each in received],
        "fid",
    )

    def flat(images):
        patches = [part for each in images for part in (each[:256, :256], each[256:, :256])]
        return np.stack([part.transpose(2, 0, 1).reshape(-1)[:2048] / 255 for part in patches])

    assert distance == pytest.approx(frechet_distance(flat(sent), flat(received)), rel=1e-4)


def test_alexnet_features_are_means_of_the_last_convolution():
    lpips = Lpips(random_weights())
    patch = image(1)
    features = AlexNetFeatures(lpips)([patch, image(2)])
    assert features.shape == (2, 256)
    last = lpips.activations(patch)[-1]
    np.testing.assert_allclose(features[0], last.reshape(-1, 256).mean(axis=0), rtol=1e-5)


def test_small_images_have_no_set_metric():
    texts = [{"fd_alexnet": "AAAA"}, {}]
    assert set_distance(texts, texts, "fd_alexnet") is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--also", "niqe"), "--also: got 'niqe', expected some of dists, fd_alexnet, fid"),
        (("--also", "fd_alexnet"), "--also: got 'fd_alexnet' without weights of AlexNet"),
    ],
)
def test_metrics_that_cannot_be_are_refused(words, message):
    if importlib.util.find_spec("lpips"):
        pytest.skip("the package lpips is installed")
    with pytest.raises(UsageError, match=message) as caught:
        wanted_from(options(*words))
    assert caught.value.code == "E_METRIC_NAME"


def test_lpips_without_weights_is_left_out_aloud(capsys):
    if importlib.util.find_spec("lpips"):
        pytest.skip("the package lpips is installed")
    assert wanted_from(options()) == Wanted()
    assert "LPIPS is left out" in capsys.readouterr().err
