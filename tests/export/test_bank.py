"""Networks of one family, a file each: CommIN's, as they are published, and what goes wrong."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import yaml

import tiny_checkpoint
from jscc.export.checkpoint import read_checkpoint
from jscc.export.gather import Request, gather
from jscc.export.inn_guide import SAMPLER, Consistency, zeta_of
from jscc.export.models.commin import Commin
from jscc.export.models.inn import SHELL, Inn
from jscc.export.source import CheckpointSource, NetworkFiles
from jscc.export.system import Options, find
from jscc.runtime.errors import CheckpointError, JsccError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jscc.export.source import WeightSource
    from jscc.export.system import Plan

PLAIN = {"lifts": 2, "blocks": 1, "width": 5}
CONDITIONED = {**PLAIN, "condition": 4, "hidden": 3}
COMMIN = find("commin")


def drawn(params: Mapping[str, Any], seed: int) -> Inn:
    network = tiny_checkpoint._drawn(Inn.from_config(params), seed)
    assert isinstance(network, Inn)
    return network


def write(path: Path, network: Inn, *, wrapped: bool = False) -> Path:
    """`network` as INDIGO+ publishes its own, `wrapped` with what was trained beside it."""
    state = {f"{SHELL}{name}": tensor for name, tensor in network.state_dict().items()}
    passengers = {"net_kdsr.E.E.0.weight": torch.ones(2, 3)} if wrapped else {}
    torch.save({"state_dict": {**state, **passengers}} if wrapped else state, path)
    return path


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """A codec and a prior, named for the command line."""
    folder = tmp_path_factory.mktemp("parts")
    codec = tiny_checkpoint.write_codec(folder / "codec")
    prior = tiny_checkpoint.write_prior(folder / "prior", image_size=16)
    return f"codec={codec}", f"prior={prior}"


def gathered(parts: tuple[str, ...], *files: Path, config: Path | None = None) -> WeightSource:
    configs = () if config is None else (f"inn={config}",)
    source, _ = gather(COMMIN, Request((*parts, *(f"inn={file}" for file in files)), configs))
    return source


def planned(source: WeightSource, **extra: str) -> Plan:
    return COMMIN.plan(source, Options(extra=extra))


def loaded(source: WeightSource, snrs_db: list[float], **more: Any) -> Commin:
    config = {**source.config["inn"], "snrs_db": snrs_db, **more}
    return source.load(lambda: Commin.from_config(config), "inn.")


@pytest.mark.parametrize("params", [PLAIN, CONDITIONED], ids=["plain", "conditioned"])
def test_each_file_is_the_network_of_its_snr(
    parts: tuple[str, ...], tmp_path: Path, params: dict[str, int]
) -> None:
    slicing = "overlapping" if "condition" in params else "clean"
    networks = [drawn({**params, "slicing": slicing}, seed) for seed in range(3)]
    files = [
        write(tmp_path / f"{index}.pth", network, wrapped=index == 1)
        for index, network in enumerate(networks)
    ]
    source = gathered(parts, *files)
    assert source.config["inn"]["nets"] == 3
    commin = loaded(source, [1.0, 13.0, 7.0])
    image = torch.rand(1, 3, 8, 8)
    told = torch.zeros(1, 4) if "condition" in params else None
    for snr_db, network in ((-4.0, networks[0]), (8.0, networks[2]), (40.0, networks[1])):
        assert torch.equal(commin(image, torch.tensor([snr_db]))[0], network(image, told)[0])
    plan = planned(source, snrs_db="1,13,7")
    assert plan.signal.csi_inputs == ("snr_db",)
    assert plan.tensors == {}
    assert "commin, " in plan.variant
    assert isinstance(source, CheckpointSource)
    names = [file.path.name for file in source.networks["inn"].files]
    assert names == ["0.pth", "1.pth", "2.pth"]


def test_one_file_is_a_bank_of_one(parts: tuple[str, ...], tmp_path: Path) -> None:
    network = drawn(PLAIN, 0)
    commin = loaded(gathered(parts, write(tmp_path / "a.pth", network)), [7.0])
    image = torch.rand(1, 3, 8, 8)
    assert torch.equal(commin(image, torch.tensor([0.0]))[0], network(image, None)[0])


def test_settings_for_all_of_them(parts: tuple[str, ...], tmp_path: Path) -> None:
    """Beside the files, alike for all, or given once; this project's word for one is no matter."""
    files = []
    for index in range(2):
        folder = tmp_path / str(index)
        folder.mkdir()
        files.append(write(folder / "inn.pth", drawn(PLAIN, index)))
        (folder / "config.yaml").write_text(yaml.safe_dump({"family": "inn", "levels": 1}))
    source = gathered(parts, *files)
    assert (source.config["inn"]["family"], source.config["inn"]["levels"]) == ("commin", 1)
    (tmp_path / "1" / "config.yaml").write_text("levels: 3")
    with pytest.raises(CheckpointError, match="got configurations that differ, expected one for"):
        gathered(parts, *files)
    (tmp_path / "own.yaml").write_text("levels: 4\nsnrs_db: [1, 7]")
    source = gathered(parts, *files, config=tmp_path / "own.yaml")
    assert planned(source).image.multiple % 16 == 0
    assert source.config["inn"]["levels"] == 4


def test_the_own_container_is_no_bank(parts: tuple[str, ...], tmp_path: Path) -> None:
    config = {**PLAIN, "nets": 2, "snrs_db": [1.0, 7.0]}
    network = tiny_checkpoint._drawn(Commin.from_config(config), 3)
    torch.save(network.state_dict(), tmp_path / "model.ckpt")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"family": "commin", **config}))
    source = gathered(parts, tmp_path / "model.ckpt")
    assert source.config["inn"]["snrs_db"] == [1.0, 7.0]
    again = loaded(source, [1.0, 7.0])
    assert all(map(torch.equal, again.state_dict().values(), network.state_dict().values()))
    assert "prior" in planned(source).variant


def refused(kind: type[JsccError], code: str, shown: str, *arguments: Any, **extra: str) -> None:
    with pytest.raises(kind, match=shown) as caught:
        planned(gathered(*arguments), **extra)
    assert caught.value.code == code


def test_files_that_are_no_bank(parts: tuple[str, ...], tmp_path: Path) -> None:
    plain = write(tmp_path / "plain.pth", drawn(PLAIN, 0))
    wide = write(tmp_path / "wide.pth", drawn({**PLAIN, "width": 6}, 0))
    torch.save({"weight": torch.ones(2, 2)}, tmp_path / "other.pth")
    told = {**CONDITIONED, "snr": True}
    torch.save(drawn(told, 0).state_dict(), tmp_path / "told.pth")
    shown = "plain.pth, wide.pth: got networks that are not alike, expected as many of the family"
    refused(CheckpointError, "E_CKPT_KEYS", shown, parts, plain, wide)
    shown = "plain.pth, other.pth: got networks that are not alike"
    refused(CheckpointError, "E_CKPT_KEYS", shown, parts, plain, tmp_path / "other.pth")
    shown = "got networks that are told the SNR, expected one for each SNR. Use --model sing_inn"
    refused(CheckpointError, "E_CONFIG", shown, parts, tmp_path / "told.pth", snrs_db="7")


@pytest.mark.parametrize(
    ("text", "kind", "shown"),
    [
        ("", UsageError, "--option snrs_db: got '', expected different numbers"),
        ("1,x", UsageError, "--option snrs_db: got '1,x', expected different numbers"),
        ("1,1", UsageError, "--option snrs_db: got '1,1', expected different numbers"),
        ("1,nan", UsageError, "--option snrs_db: got '1,nan', expected different numbers"),
        ("1,7,13", CheckpointError, r"snrs_db: got \[1.0, 7.0, 13.0\], expected 2 different"),
        (None, CheckpointError, "snrs_db: got None, expected 2 different numbers.*Add --option"),
    ],
)
def test_snrs_that_are_none(
    parts: tuple[str, ...], tmp_path: Path, text: str | None, kind: type[JsccError], shown: str
) -> None:
    files = [write(tmp_path / f"{index}.pth", drawn(PLAIN, index)) for index in range(2)]
    extra = {} if text is None else {"snrs_db": text}
    code = "E_OPTION" if kind is UsageError else "E_CONFIG"
    refused(kind, code, shown, parts, *files, **extra)


# What the papers leave open.


def test_zeta_is_one_number_or_one_for_each_snr(parts: tuple[str, ...], tmp_path: Path) -> None:
    assert zeta_of({}) == (SAMPLER.guidance, ())
    assert zeta_of({"zeta": "2.5"}) == (2.5, ())
    points = ((-1.5, 0.0), (7.0, 3.0), (13.0, 0.3))
    assert zeta_of({"zeta": "-1.5:0,7:3,13:.3"}) == (3.0, points)
    source = gathered(parts, write(tmp_path / "a.pth", drawn(PLAIN, 0)))
    sampler = planned(source, snrs_db="7", zeta="1:3,7:1").loops["denoise"].sampler
    assert (sampler.guidance, sampler.guidance_by_snr) == (3.0, ((1.0, 3.0), (7.0, 1.0)))


@pytest.mark.parametrize("text", ["7:1,1:3", "1:1,1:2", "1:-1", "1:nan", "nan:1", "1:1:1", "1:1,2"])
def test_zetas_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match=f"zeta: got '{text}', expected a number or SNR:WEIGHT"):
        zeta_of({"zeta": text})
    crowd = ",".join(f"{index}:1" for index in range(65))
    with pytest.raises(UsageError, match="expected a number or SNR:WEIGHT,… .*at most 64"):
        zeta_of({"zeta": crowd})
    with pytest.raises(UsageError, match="zeta: got '-1', expected a number from 0"):
        zeta_of({"zeta": "-1"})


class Halves(torch.nn.Module):
    """Splits an image into its left columns and its right ones."""

    def forward(self, image: torch.Tensor, told: None) -> tuple[torch.Tensor, torch.Tensor]:
        return image[..., :2], image[..., 2:]

    def inverse(self, coarse: torch.Tensor, rest: torch.Tensor, told: None) -> torch.Tensor:
        return torch.cat((coarse, rest), dim=-1)


@pytest.mark.parametrize("squared", [False, True])
def test_the_norm_is_taken_of_each_image_and_squared_or_not(squared: bool) -> None:
    """Images 0.1 and 0.3 off in four columns by three rows of three colours, two of them coarse."""
    image = torch.full((2, 3, 3, 4), 0.5)
    coarse = image[..., :2] + torch.tensor([0.1, 0.3]).view(2, 1, 1, 1)
    loss = Consistency(Halves(), (2.0, 1.0), squared=squared)(2 * image - 1, coarse, None)
    squares = torch.tensor([0.1, 0.3]) ** 2 * 18
    expected = 3 * (squares if squared else squares.sqrt())
    assert torch.allclose(loss, expected, rtol=1e-6)


def test_the_norm_is_an_option(parts: tuple[str, ...], tmp_path: Path) -> None:
    source = gathered(parts, write(tmp_path / "a.pth", drawn(PLAIN, 0)))
    assert planned(source, snrs_db="7", norm="squared").variant.endswith("M, squared norm")
    assert planned(source, snrs_db="7").variant.endswith(" M")
    guided = next(
        spec
        for spec in planned(source, snrs_db="7", norm="squared").stages
        if spec.name == "guided_cheap"
    )
    consistency: Any = guided.build().get_submodule("loss.consistency")
    assert float(consistency.norm(torch.full((1, 4), 3.0))) == 36.0
    with pytest.raises(UsageError, match="--option norm: got 'l1', expected one of l2, squared"):
        planned(source, snrs_db="7", norm="l1")


def test_every_file_of_a_bank_is_in_the_provenance(tmp_path: Path) -> None:
    files = [write(tmp_path / f"{seed}.pth", drawn(PLAIN, seed)) for seed in (1, 2, 3)]
    read = [read_checkpoint(path) for path in files]
    both, other, one = (
        NetworkFiles(kept, "none").describe().sha256
        for kept in ((read[0], read[1]), (read[0], read[2]), (read[0],))
    )
    assert one == hashlib.sha256(files[0].read_bytes()).hexdigest()
    assert len({both, other, one}) == 3
