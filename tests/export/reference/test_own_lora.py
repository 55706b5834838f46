"""``--lora reference:NAME`` takes a change of the reference weights, for those weights alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
import yaml
from safetensors.torch import save_file

from jscc.export import gather as gather_module
from jscc.export import roles
from jscc.export.gather import Request, gather
from jscc.export.lora import parse_lora
from jscc.export.roles import own_lora
from jscc.export.source import CheckpointSource
from jscc.export.system import find
from jscc.runtime.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

OWN = "reference:diffjscc-few-step"
LAYER = "lora_unet_down_blocks_0_resnets_0_conv1"


@pytest.fixture
def references(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The reference weights, with a change of rank 2 of one layer beside them."""
    for path in roles.REFERENCES.glob("*/config.yaml"):
        (tmp_path / path.parent.name).symlink_to(path.parent)
    folder = tmp_path / OWN.partition(":")[2]
    if folder.is_symlink():
        folder.unlink()
    folder.mkdir()
    shape = layer_shape()
    tensors = {
        f"{LAYER}.lora_down.weight": torch.ones(2, *shape[1:]),
        f"{LAYER}.lora_up.weight": torch.ones(shape[0], 2, 1, 1),
        f"{LAYER}.alpha": torch.tensor(2.0),
    }
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.yaml").write_text(yaml.safe_dump({"rank": 2}))
    monkeypatch.setattr(roles, "REFERENCES", tmp_path)
    return tmp_path


def layer_shape() -> tuple[int, ...]:
    from safetensors import safe_open

    with safe_open(roles.REFERENCES / "diffjscc" / "model.safetensors", "pt") as file:
        name = "model.diffusion_model.input_blocks.1.0.in_layers.2.weight"
        return tuple(file.get_slice(name).get_shape())


def test_it_is_recorded_by_its_name_with_its_licence(references: Path) -> None:
    source, _ = gather(find("diffjscc"), Request(loras=(f"{OWN}:0.5",), licence="other"))
    assert isinstance(source, CheckpointSource)
    (lora,) = source.loras
    described = lora.describe()
    assert described.name == f"{OWN}, weight 0.5"
    assert described.licence == "Apache-2.0"
    assert len(lora.pairs) == 1


def test_name_and_weight(references: Path) -> None:
    file = references / "diffjscc-few-step" / "model.safetensors"
    assert parse_lora(OWN) == (file, 1.0)
    assert parse_lora(f"{OWN}:-0.25") == (file, -0.25)
    for number in ("", "high", "0", "nan"):
        with pytest.raises(UsageError, match=f"got the weight '{number}', expected a finite"):
            parse_lora(f"{OWN}:{number}")


def test_other_weights_are_not_changed_by_it(references: Path, tmp_path: Path) -> None:
    assert own_lora(OWN, "reference:diffjscc")
    assert own_lora(f"{OWN}:0.5", "reference:diffjscc")
    assert not own_lora(OWN, "reference:diff")
    assert not own_lora(OWN, "reference:af-96")
    assert not own_lora(OWN, "diffjscc")
    assert not own_lora("reference:diffjscc", "reference:diffjscc")
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("config.yaml", "model.safetensors"):
        (copy / name).symlink_to(references / "diffjscc" / name)
    request = Request(checkpoints=(str(copy),), loras=(OWN,))
    with pytest.raises(UsageError, match=f"--lora {OWN}: got it with another checkpoint"):
        gather_module.gather(find("diffjscc"), request)


@pytest.mark.parametrize(
    ("name", "got"),
    [
        ("nonsense", "'nonsense'"),
        ("diffjscc-tiny", "'diffjscc-tiny', which is no LoRA"),
        ("diffjscc", "'diffjscc', which is no LoRA"),
    ],
)
def test_only_a_lora_of_that_name_is_taken(references: Path, name: str, got: str) -> None:
    with pytest.raises(UsageError) as caught:
        gather(find("diffjscc"), Request(loras=(f"reference:{name}",)))
    assert caught.value.code == "E_REFERENCE"
    assert caught.value.message == (
        f"--lora reference:NAME: got {got}, expected one of diffjscc-few-step. Pick one, or give "
        "a file of your own."
    )


def test_weights_that_are_the_reference_in_part_are_others(
    references: Path, tmp_path: Path
) -> None:
    """The second file's weights count where both have one."""
    other = tmp_path / "other.safetensors"
    other.symlink_to(references / "diffjscc" / "model.safetensors")
    request = Request(checkpoints=("reference:diffjscc", str(other)), loras=(OWN,))
    with pytest.raises(UsageError, match=f"--lora {OWN}: got it with another checkpoint"):
        gather(find("diffjscc"), request)
    source, _ = gather(find("diffjscc"), Request(checkpoints=request.checkpoints))
    assert isinstance(source, CheckpointSource)
    assert source.networks[""].describe().name == "model.safetensors + other.safetensors"
