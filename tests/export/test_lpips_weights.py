"""Published LPIPS weights become the two files that every reader of them takes."""

import pytest
import torch

from jscc.calibration.lpips import load_lpips
from jscc.export.lpips_weights import main
from jscc.export.models.lpips import Lpips
from jscc.export.reference import perceptual
from jscc.runtime.errors import CheckpointError


@pytest.fixture
def published(tmp_path):
    """Torchvision's AlexNet and the authors' heads, random."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        network = Lpips()
    state = network.state_dict()
    features = {name: value for name, value in state.items() if name.startswith("features.")}
    heads = {
        name.removeprefix("alex."): value.abs_()
        for name, value in state.items()
        if name not in features
    }
    torch.save({**features, "classifier.1.weight": torch.ones(4, 4)}, tmp_path / "alexnet.pth")
    torch.save(heads, tmp_path / "alex.pth")
    return network.eval(), [str(tmp_path / name) for name in ("alexnet.pth", "alex.pth")]


def test_readers_take_what_is_written(published, tmp_path, capsys):
    network, files = published
    folder = tmp_path / "new" / "lpips"
    assert main([*files, str(folder)]) == 0
    assert perceptual.HEADS_FILE in capsys.readouterr().out
    pictures = torch.randint(0, 256, (2, 64, 48, 3), generator=torch.Generator().manual_seed(1))
    planes = pictures.permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        expected = float(network(planes[:1], planes[1:]))
        trained = float(perceptual.Lpips(folder)(planes[:1], planes[1:]))
    first, second = pictures.numpy().astype("uint8")
    measured = load_lpips(folder)(first, second)
    assert (trained, measured) == pytest.approx((expected, expected), rel=2e-3)


def test_half_of_them_is_refused(published, tmp_path):
    _, files = published
    wanted = "alexnet.pth: got weights features.0.weight"
    with pytest.raises(CheckpointError, match=wanted) as caught:
        main([files[0], str(tmp_path / "x")])
    assert caught.value.exit_status == 65
    assert not (tmp_path / "x").exists()
