"""Checkpoints named on the command line become one source, whatever networks they hold."""

import hashlib

import pytest
import torch
import yaml

from jscc.export import recognise
from jscc.export.gather import Request, gather
from jscc.export.models.bourtsoulatze import Bourtsoulatze
from jscc.export.models.pdjscc import Pdjscc
from jscc.export.recognise import Family
from jscc.export.system import System
from jscc.runtime.declared import needed_format
from jscc.runtime.errors import CheckpointError, UsageError


def toy_config(shapes):
    return {"size": shapes["toy.weight"][0]} if "toy.weight" in shapes else None


def system(**roles):
    return System(paper="none", plan=None, roles=roles or {"": "diffjscc"})


TWO = system(codec="diffjscc", prior="nobody")


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    """A family of priors with one weight."""
    family = Family("toy", "prior", toy_config, below=("toy.",))
    monkeypatch.setattr(recognise, "FAMILIES", (*recognise.FAMILIES, family))


@pytest.fixture
def codec(tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.save(Bourtsoulatze(4).state_dict(), tmp_path / "codec.pkl")
    return tmp_path / "codec.pkl"


@pytest.fixture
def prior(tmp_path):
    (tmp_path / "prior").mkdir()
    torch.save({"state_dict": {"toy.weight": torch.ones(5)}}, tmp_path / "prior" / "prior.pt")
    return tmp_path / "prior" / "prior.pt"


def refused(error, code, match, *arguments, **options):
    with pytest.raises(error, match=match) as caught:
        gather(*arguments, **options)
    assert caught.value.code == code


def test_one_network_needs_no_configuration(codec):
    source, defaults = gather(system(), Request((str(codec),)))
    assert dict(source.config) == {"family": "bourtsoulatze", "c_out": 4}
    assert source.shapes("decoder.tconv5.transconv.")["bias"] == (3,)
    assert source.folder == codec.parent
    assert defaults == {}
    assert needed_format(source.describe()) == 1


def test_networks_find_their_roles(codec, prior):
    for names in ((f"prior={prior}", f"codec={codec}"), (str(prior), str(codec))):
        source, _ = gather(TWO, Request(names, licence="MIT"))
        assert dict(source.config["codec"]) == {"family": "bourtsoulatze", "c_out": 4}
        assert dict(source.config["prior"]) == {"family": "toy", "size": 5}
        assert source.shapes("prior.") == {"toy.weight": (5,)}
        assert torch.equal(source.tensors["prior.toy.weight"], torch.ones(5))
        assert source.has("codec.encoder.conv1.")
        layer = source.load(lambda: torch.nn.Conv2d(3, 16, 5), "codec.encoder.conv1.conv.")
        assert layer.weight.shape == (16, 3, 5, 5)


def test_several_networks_are_recorded_one_by_one(codec, prior):
    source, _ = gather(TWO, Request((str(codec), str(prior)), licence="MIT"))
    record = source.describe()
    hashes = {
        "codec": hashlib.sha256(codec.read_bytes()).hexdigest(),
        "prior": hashlib.sha256(prior.read_bytes()).hexdigest(),
    }
    assert {role: network.sha256 for role, network in record.networks.items()} == hashes
    lines = "".join(f"{role} {value}\n" for role, value in hashes.items())
    assert record.sha256 == hashlib.sha256(lines.encode()).hexdigest()
    assert record.name == "codec codec.pkl, prior prior.pt"
    assert record.licence == "MIT"
    assert needed_format(record) == 2


def test_reference_weights_fill_what_is_not_given(prior):
    source, defaults = gather(TWO, Request((str(prior),), licence="MIT"))
    assert source.config["codec"]["target"] == "model.cldm.ControlLDM"
    assert source.has("codec.preprocess_model.")
    assert defaults["steps"] == 4
    licences = {role: each.licence for role, each in source.describe().networks.items()}
    assert licences == {"codec": "Apache-2.0", "prior": "MIT"}
    assert source.describe().networks["codec"].name == "reference:diffjscc"
    named, _ = gather(TWO, Request((str(prior), "reference:diffjscc")))
    assert named.config == source.config


def test_reference_weights_that_are_not_there(codec):
    refused(UsageError, "E_REFERENCE", "got 'nobody'", TWO, Request((str(codec),)))


def test_configuration_adds_what_weights_cannot_tell(codec, prior):
    (codec.parent / "own.yaml").write_text("snr_label_db: 7\nreceiver: {steps: 3}\n")
    (prior.parent / "config.yaml").write_text("range: [-1, 1]\nreceiver: {sampler: ddim}\n")
    names = (str(codec), str(prior))
    request = Request(names, configs=(f"codec={codec.parent / 'own.yaml'}",))
    source, defaults = gather(TWO, request)
    assert source.config["codec"]["snr_label_db"] == 7
    assert dict(source.config["prior"]) == {"family": "toy", "size": 5, "range": [-1, 1]}
    assert defaults == {"steps": 3, "sampler": "ddim"}


def test_one_configuration_for_two_networks(codec, prior):
    request = Request((str(codec), str(prior)), configs=("a.yaml",))
    refused(UsageError, "E_ROLE", "--config: got a.yaml, expected one file for each", TWO, request)


def test_network_in_another_networks_place(codec, prior):
    request = Request((f"codec={prior}", f"prior={codec}"))
    match = r"got a network of the family 'toy', which is a prior, expected a codec"
    refused(UsageError, "E_ROLE", match, TWO, request)


def test_two_networks_for_one_role(codec):
    request = Request((str(codec), str(codec)))
    refused(UsageError, "E_ROLE", "got the codec, expected one of codec, prior", TWO, request)


def test_weights_without_a_known_role(tmp_path):
    torch.save({"a": torch.ones(1)}, tmp_path / "a.pt")
    match = "got unknown weights, expected one of codec, prior"
    refused(UsageError, "E_ROLE", match, TWO, Request((str(tmp_path / "a.pt"),)))


def test_codec_of_the_wrong_family(codec):
    request = Request((str(codec),), codec="pdjscc")
    refused(CheckpointError, "E_CKPT_FAMILY", "a network of the family 'pdjscc'", system(), request)
    refused(UsageError, "E_FAMILY", "got 'x'", system(), Request((str(codec),), codec="x"))


def test_weights_beside_a_known_network(tmp_path):
    state = {**Bourtsoulatze(4).state_dict(), "refiner.weight": torch.ones(1)}
    torch.save(state, tmp_path / "a.pt")
    match = r"got 1 weights that no stage takes \(refiner.weight\)"
    refused(CheckpointError, "E_CKPT_KEYS", match, system(), Request((str(tmp_path / "a.pt"),)))


def test_unknown_weights_without_a_configuration(tmp_path):
    torch.save({"a": torch.ones(1)}, tmp_path / "a.pt")
    request = Request((str(tmp_path / "a.pt"),))
    refused(CheckpointError, "E_CKPT_CONFIG", "got no config.yaml beside it", system(), request)


def test_random_weights_for_every_role(tmp_path):
    config = {"family": "pdjscc", "c_feat": 16, "c_out": 2}
    (tmp_path / "codec.yaml").write_text(yaml.safe_dump(config))
    two = system(codec="nobody", prior="diffjscc")
    request = Request(configs=(f"codec={tmp_path / 'codec.yaml'}",), random_seed=3)
    source, _ = gather(two, request)
    assert source.config["codec"] == config
    assert source.config["prior"]["target"] == "model.cldm.ControlLDM"
    assert source.shapes("codec.") == {}
    first, again = (source.load(lambda: Pdjscc(16, 2), "codec.") for _ in range(2))
    assert torch.equal(first.encoder.conv_block1[0].weight, again.encoder.conv_block1[0].weight)


def test_random_weights_and_a_checkpoint(codec):
    request = Request((str(codec),), random_seed=1)
    refused(UsageError, "E_WEIGHTS", "got --checkpoint .*codec.pkl too", system(), request)
