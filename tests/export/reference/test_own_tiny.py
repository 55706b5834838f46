"""``--vae tiny`` alone takes the tiny autoencoder of the reference weights; others stay out."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file, save_file

from jscc.export import gather as gather_module
from jscc.export import roles
from jscc.export.cli import _parser, _tiny
from jscc.export.gather import Request, gather
from jscc.export.models.tiny_autoencoder import TinyShape, tiny_decoder, tiny_encoder
from jscc.export.roles import own_tiny
from jscc.export.source import CheckpointSource
from jscc.export.system import find
from jscc.runtime.errors import CheckpointError, UsageError

OWN = "reference:diffjscc-tiny"


@pytest.fixture
def references(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The reference weights of DiffJSCC, with a tiny autoencoder beside them."""
    for path in roles.REFERENCES.glob("*/config.yaml"):
        (tmp_path / path.parent.name).symlink_to(path.parent)
    folder = tmp_path / "diffjscc-tiny"
    if folder.is_symlink():
        folder.unlink()
    folder.mkdir()
    halves = {"encoder": tiny_encoder(TinyShape(4, 8)), "decoder": tiny_decoder(TinyShape(4, 8))}
    tensors = {
        f"{half}.{name}": value.half()
        for half, network in halves.items()
        for name, value in network.state_dict().items()
    }
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.yaml").write_text(yaml.safe_dump({"latent": 4, "width": 8}))
    monkeypatch.setattr(roles, "REFERENCES", tmp_path)
    return tmp_path


def chosen(*arguments: str, model: str = "diffjscc") -> tuple[str, ...]:
    parsed = _parser().parse_args(["--model", model, "-o", "x.jscc", *arguments])
    return _tiny(parsed, find(model))


def test_the_tiny_autoencoder_of_weights_is_named_after_them(references: Path) -> None:
    assert own_tiny((), "diffjscc") == OWN
    assert own_tiny(("reference:diffjscc",), "af-96") == OWN
    assert own_tiny(("reference:af-96",), "diffjscc") is None
    assert own_tiny(("model.ckpt",), "diffjscc") is None
    assert own_tiny(("reference:diffjscc", "more.ckpt"), "diffjscc") is None
    assert own_tiny((), None) is None


def test_it_is_taken_where_nothing_else_is_said(references: Path) -> None:
    assert chosen("--vae", "tiny") == (OWN,)
    assert chosen("--vae", "tiny", "--checkpoint", "reference:diffjscc") == (OWN,)
    assert chosen("--vae", "tiny", "--tiny", "x.pth") == ("x.pth",)
    assert chosen() == ()
    assert chosen("--vae", "tiny", "--random-weights", "0") == ()
    for arguments in (("--checkpoint", "x.ckpt"), ("--checkpoint", "reference:af-96")):
        with pytest.raises(UsageError, match="--vae tiny: got no --tiny, expected"):
            chosen("--vae", "tiny", *arguments)
    with pytest.raises(UsageError, match="--vae tiny: got no --tiny, expected"):
        chosen("--vae", "tiny", model="sing_zero")


def test_its_weights_and_licence_are_those_of_the_reference(references: Path) -> None:
    source, _ = gather(find("diffjscc"), Request(tiny=(OWN,), licence="other"))
    assert isinstance(source, CheckpointSource)
    described = source.describe()
    assert described.networks["tiny"].name == OWN
    assert described.networks["tiny"].licence == "Apache-2.0"
    packed = load_file(references / "diffjscc-tiny" / "model.safetensors")
    encoder = source.load(lambda: tiny_encoder(TinyShape(4, 8)), "tiny.encoder.")
    name = "14.weight"
    assert bool((encoder.state_dict()[name] == packed[f"encoder.{name}"].float()).all())


@pytest.mark.parametrize(
    ("checkpoints", "tiny", "shown"),
    [
        ((), "x.pth", "--tiny x.pth: got it with reference:diffjscc, .* or take --tiny " + OWN),
        ((), "reference:af-96", "--tiny reference:af-96: got it with reference:diffjscc"),
        (("x.ckpt",), OWN, f"--tiny {OWN}: got it with another checkpoint"),
    ],
)
def test_latents_of_other_weights_are_refused(
    references: Path, checkpoints: tuple[str, ...], tiny: str, shown: str
) -> None:
    named = checkpoints[0] if checkpoints else "reference:diffjscc"
    with pytest.raises(UsageError, match=shown) as caught:
        gather_module._check_tiny((tiny,), named)
    assert caught.value.code == "E_VAE"


def test_one_that_does_not_lie_here_is_named(references: Path) -> None:
    said = "^--tiny .*: got 'nobody', expected one of .*diffjscc-tiny"
    with pytest.raises(UsageError, match=said) as caught:
        gather(find("diffjscc"), Request(tiny=("reference:nobody",)))
    assert caught.value.code == "E_REFERENCE"


def test_a_tiny_autoencoder_is_no_checkpoint(references: Path) -> None:
    with pytest.raises(CheckpointError, match="weights that no stage takes") as caught:
        gather(find("diffjscc"), Request((OWN,)))
    assert caught.value.code == "E_CKPT_KEYS"
