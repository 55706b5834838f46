"""Weights go into a module all together or not at all."""

import pytest
import torch
from torch import nn

from jscc.export.checkpoint import read_checkpoint
from jscc.export.load import add_prefix, is_bare_controlnet, load_into, merge, select
from jscc.export.tensor_file import StoredTensors
from jscc.runtime.errors import CheckpointError


def module() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def empty() -> nn.Module:
    with torch.device("meta"):
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


@pytest.fixture(params=["stored", "held"])
def weights(request, tmp_path):
    """The same tensors in a file and in memory."""
    state = {f"net.{name}": tensor for name, tensor in module().state_dict().items()}
    state["other.weight"] = torch.ones(2)
    if request.param == "held":
        return state
    torch.save(state, tmp_path / "model.pt")
    return read_checkpoint(tmp_path / "model.pt").tensors


def test_select_renames_and_leaves_out(weights):
    found = select(weights, "net.", ignore=("1.*", "*.bias"))
    assert list(found) == ["0.weight", "2.weight"]
    assert torch.equal(found["0.weight"], weights["net.0.weight"])
    assert isinstance(found, StoredTensors) == isinstance(weights, StoredTensors)
    assert set(select(weights, "")) == set(weights)


def test_add_prefix_and_merge(weights):
    both = merge([weights, add_prefix(select(weights, "net."), "copy.")])
    assert len(both) == 2 * len(weights) - 1
    assert torch.equal(both["copy.0.bias"], both["net.0.bias"])
    later = {"net.0.bias": torch.zeros(4)}
    assert torch.equal(merge([weights, later])["net.0.bias"], torch.zeros(4))


def test_a_module_on_the_meta_device_gets_its_weights(weights):
    loaded = load_into(empty(), select(weights, "net."), where="file").eval()
    x = torch.ones(5, 3)
    assert torch.equal(loaded(x), module().eval()(x))


def test_half_precision_becomes_what_the_module_declares(weights):
    found = {name: each.half() for name, each in select(weights, "net.").items()}
    found["1.num_batches_tracked"] = torch.tensor(7, dtype=torch.int32)
    loaded = load_into(empty(), found, where="file")
    assert {each.dtype for each in loaded.parameters()} == {torch.float32}
    assert loaded[1].num_batches_tracked.dtype == torch.int64
    assert torch.equal(loaded[0].weight, found["0.weight"].float())


def test_missing_and_extra_names_are_counted_and_listed(weights):
    found = {**select(weights, "net.", ignore=("2.*",)), "stranger": torch.ones(1)}
    match = r"file: got 2 of 9 missing \(2\.weight, 2\.bias\) and 1 extra \(stranger\)"
    with pytest.raises(CheckpointError, match=match) as caught:
        load_into(empty(), found, where="file")
    assert caught.value.code == "E_CKPT_KEYS"
    many = {f"stranger{i}": torch.ones(1) for i in range(25)}
    with pytest.raises(CheckpointError, match=r"25 extra \(.*stranger9, … 15 more\)"):
        load_into(empty(), {**select(weights, "net."), **many}, where="file")


def test_ignored_names_may_be_there_or_not(weights):
    found = {**select(weights, "net."), "attn_mask": torch.ones(1), "blip_model.x": torch.ones(1)}
    load_into(empty(), found, where="file", ignore=("attn_mask", "blip_model.*", "absent"))
    del found["0.weight"]
    with pytest.raises(CheckpointError, match="1 of 9 missing"):
        load_into(empty(), found, where="file", ignore=("attn_mask", "blip_model.*", "0.weight"))


def test_other_shapes_and_kinds_are_listed_and_nothing_is_loaded(weights):
    target = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"0\.weight: float32\[4,3\] for float32\[5,3\]"):
        load_into(target, select(weights, "net."), where="file")
    found = {**select(weights, "net."), "0.bias": torch.ones(4, dtype=torch.int64)}
    with pytest.raises(CheckpointError, match=r"0\.bias: int64\[4\] for float32\[4\]") as caught:
        load_into(empty(), found, where="file")
    assert caught.value.code == "E_CKPT_KEYS"
    assert all(torch.equal(before[name], each) for name, each in target.state_dict().items())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers_are_named(weights, bad):
    found = dict(select(weights, "net."))
    found["2.weight"] = found["2.weight"].clone()
    found["2.weight"][1, 3] = bad
    with pytest.raises(CheckpointError, match=r"in 1 of 9 weights \(2\.weight\)") as caught:
        load_into(empty(), found, where="file")
    assert caught.value.code == "E_WEIGHTS_NONFINITE"
    assert load_into(empty(), found, where="file", allow_nonfinite=True)[
        2
    ].weight.isnan().any() == (bad != bad)


def test_all_zero_matrices_are_refused_and_one_is_not(weights):
    found = dict(select(weights, "net."))
    found["0.weight"] = torch.zeros(4, 3)
    load_into(empty(), found, where="file")
    found["2.weight"] = torch.zeros(2, 4)
    with pytest.raises(CheckpointError, match=r"zeros in all 2 matrices \(0\.weight") as caught:
        load_into(empty(), found, where="file")
    assert caught.value.code == "E_WEIGHTS_NONFINITE"


def test_a_number_too_large_for_the_module_is_refused(weights):
    found = {**select(weights, "net."), "0.bias": torch.full((4,), 1e300, dtype=torch.float64)}
    with pytest.raises(CheckpointError, match=r"NaN or infinity in 1 of 9 weights \(0\.bias\)"):
        load_into(empty(), found, where="file")


def test_a_buffer_left_on_meta_is_the_modules_fault():
    class Faulty(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2, 2))
            self.register_buffer("table", torch.ones(2), persistent=False)

    with torch.device("meta"):
        faulty = Faulty()
    with pytest.raises(ValueError, match="'table'"):
        load_into(faulty, {"weight": torch.ones(2, 2)}, where="file")


def test_a_bare_controlnet_is_told_by_its_names():
    bare = ["time_embed.0.weight", "input_blocks.0.0.weight", "zero_convs.0.0.weight"]
    assert is_bare_controlnet(bare)
    assert is_bare_controlnet([*bare, "middle_block_out.0.weight"])
    assert not is_bare_controlnet([f"control_model.{name}" for name in bare])
    assert not is_bare_controlnet([*bare, "output_blocks.0.0.weight"])  # a UNet beside it
    assert not is_bare_controlnet(bare[:2])
    assert not is_bare_controlnet([])
