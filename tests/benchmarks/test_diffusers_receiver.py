"""Diffusers receiver: diffusers' own networks and schedulers receive what our receiver does."""

import copy
import importlib.util
import io
import json
import sys
import types
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch", reason="torch is not installed")

import torch

import tiny_bundle
import tiny_checkpoint
from jscc.__main__ import main
from jscc.benchmarks.contestants import parse_contestant
from jscc.benchmarks.diffusers_receiver import DiffusersReceiver, Networks, context_of
from jscc.benchmarks.diffusers_schedulers import SCHEDULERS, drawing, make_scheduler, spacing_for
from jscc.benchmarks.peer_diffusers import convert
from jscc.benchmarks.torch_backend import TorchBackend
from jscc.export.gather import Request
from jscc.export.models.unet import Control, Unet
from jscc.export.system import Options
from jscc.export.systems.diffjscc import Prompt
from jscc.runtime import table
from jscc.runtime.bundle import Bundle, write_bundle
from jscc.runtime.errors import UnavailableError, UsageError
from jscc.runtime.manifest import StageEntry
from jscc.runtime.manifest_loops import ScheduleSpec
from jscc.runtime.ports import Port
from jscc.runtime.schedule import schedule_from

needs_diffusers = pytest.mark.skipif(
    importlib.util.find_spec("diffusers") is None, reason="diffusers is not installed"
)
FOURS = ("latent", "hint")  # planes
STABLE_DIFFUSION = ScheduleSpec("scaled_linear", 0.00085, 0.012, 1000)


@pytest.fixture(scope="module")
def ldm(tmp_path_factory):
    """A checkpoint, and the bundle of it for images of 64x64, with a text that was drawn."""
    from jscc.export.cli import main as export

    folder = tmp_path_factory.mktemp("ldm")
    config = copy.deepcopy(tiny_checkpoint.LDM)
    for part in ("control_stage_config", "unet_config"):
        config["params"][part]["params"].update(channel_mult=[1], attention_resolutions=[])
    checkpoint = str(tiny_checkpoint.write_control_ldm(folder / "ldm", config))
    path = folder / "ldm.jscc"
    command = ["--model", "diffjscc", "--checkpoint", checkpoint, "--size", "64x64", "-o", path]
    assert export([str(word) for word in command]) == 0
    return checkpoint, with_text(path, checkpoint, folder / "text.jscc")


def with_text(path, checkpoint, destination):
    """The bundle with keys and values of a text of drawn numbers instead of its zeros."""
    bundle = Bundle.open(path)
    modules = TorchBackend.of("diffjscc", Request(checkpoints=(checkpoint,)), Options(), 1)
    module = modules.specs["denoise"].build()
    torch.manual_seed(1)
    text = torch.randn(1, 1, module.unet.config.context_dim)
    kv = io.BytesIO()
    np.save(kv, Prompt(module.control, module.unet)(text).numpy())
    files = {name: path / name for name in bundle.manifest.files}
    files[bundle.manifest.tensors["context_kv"].file] = kv.getvalue()
    manifest = replace(bundle.manifest, selftest=None)  # its image is that of the other text
    write_bundle(destination, manifest, files)
    return destination


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((64, 64)).save(folder / "a.png")
    return folder


def test_the_engine_is_a_contestants():
    found = parse_contestant("a.jscc,engine=diffusers,sampler=ddim,spacing=trailing,steps=4")
    assert (found.engine, found.sampler, found.spacing) == ("diffusers", "ddim", "trailing")
    assert str(found) == "a, diffusers, ddim, trailing, 4 steps"


def test_samplers_are_those_of_the_runtime():
    assert set(table.names()) - set(SCHEDULERS) == {"ddnm"}


def test_another_sampler_is_refused_before_anything_is_loaded(capsys):
    contestant = "nothing.jscc,engine=diffusers,sampler=ddnm"
    assert main(["bench", "receivers", contestant]) == 2
    shown = capsys.readouterr().err
    assert "got 'ddnm' for engine diffusers, expected one of ddim, ddpm, dpmpp2m" in shown
    assert "[E_SAMPLER]" in shown


def test_levels_are_trailing_where_a_scheduler_takes_none():
    assert spacing_for("ddpm", None) is None
    assert spacing_for("ddpm", "karras") == "karras"
    assert spacing_for("unipc", None) == "trailing"
    with pytest.raises(UsageError, match="expected 'trailing', the levels of its DDIMScheduler"):
        spacing_for("ddim", "linspace")


def test_another_system_is_refused(tmp_path):
    manifest, files = tiny_bundle.codec()
    path = tmp_path / "codec.jscc"
    write_bundle(path, replace(manifest, selftest=None), files)
    with pytest.raises(UsageError, match="expected 'diffjscc', whose networks diffusers has"):
        DiffusersReceiver(Bundle.open(path), Request(), 1)


def test_a_text_at_run_time_is_refused():
    manifest = types.SimpleNamespace(system="diffjscc", tensors={})
    with pytest.raises(UsageError, match="given its text at run time, expected one with --text"):
        DiffusersReceiver(types.SimpleNamespace(manifest=manifest), Request(), 1)


def test_where_diffusers_is_missing_a_line_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    manifest = types.SimpleNamespace(system="diffjscc", tensors={"context_kv": None})
    with pytest.raises(UnavailableError, match="got no module 'diffusers', expected it installed"):
        DiffusersReceiver(types.SimpleNamespace(manifest=manifest), Request(), 1)


@pytest.fixture
def networks():
    """Both networks of the tiny checkpoint's kind, their attentions drawn."""
    params = tiny_checkpoint.LDM["params"]
    torch.manual_seed(0)
    control = Control.from_config(params["control_stage_config"]["params"])
    return control, Unet.from_config(params["unet_config"]["params"])


@needs_diffusers
@pytest.mark.filterwarnings("ignore")
def test_diffusers_finds_the_same_noise_at_every_snr(networks):
    """With an SNR that is scaled and shifted, and a text of several tokens."""
    control, unet = networks
    drawn = torch.Generator().manual_seed(1)
    for parameter in (*control.parameters(), *unet.parameters()):
        parameter.requires_grad_(False).normal_(0, 0.1, generator=drawn)
    text = torch.randn(1, 5, unet.config.context_dim, generator=drawn)
    ports = [Port(name, "float32", ("batch", 4, "height/8", "width/8")) for name in FOURS]
    ports += [Port(name, "float32", ("batch",)) for name in ("timestep", "snr_db")]
    entry = StageEntry("", 1, False, tuple(ports), (replace(ports[0], name="noise"),))
    theirs = Networks(
        "denoise",
        entry,
        *convert(control, unet),
        text,
        control.config.snr_scale,
        control.config.min_snr,
    )
    assert control.config.min_snr == -5
    found = []
    for snr_db in (1.0, 13.0):
        planes = [torch.randn(1, 4, 8, 8, generator=drawn.manual_seed(2)) for _ in FOURS]
        told = [torch.tensor([499.0]), torch.tensor([snr_db])]
        arrays = [tensor.numpy() for tensor in (*planes, *told)]
        found.append(
            theirs.run({port.name: a for port, a in zip(ports, arrays, strict=True)})["noise"]
        )
        (latent, hint), (timestep, snr) = planes, told
        residuals = control(latent, hint, timestep, snr, control.project_context(text))
        ours = unet(latent, timestep, unet.project_context(text), residuals).numpy()
        assert np.abs(found[-1] - ours).max() < 1e-5 * np.abs(ours).max()
    assert np.abs(found[0] - found[1]).max() > 1e-3 * np.abs(found[0]).max()


def test_the_text_is_found_from_its_keys_and_values(networks):
    control, unet = networks
    text = torch.randn(1, 5, unet.config.context_dim)
    with torch.no_grad():
        kv = torch.cat([unet.project_context(text), control.project_context(text)], dim=-1)
    found = context_of(kv.numpy(), control, unet)
    assert torch.allclose(found, text, atol=1e-4)
    assert not context_of(np.zeros_like(kv.numpy()), control, unet).any()


def test_keys_and_values_of_other_weights_are_told(networks):
    control, unet = networks
    kv = np.random.default_rng(0).standard_normal(
        (1, 5, unet.context_width + control.context_width), dtype=np.float32
    )
    with pytest.raises(UsageError, match="expected those that it was exported from"):
        context_of(kv, control, unet)


def test_a_module_draws_what_it_is_given_and_its_own_again(monkeypatch):
    module = types.ModuleType("drawing_scheduler")
    module.randn_tensor = lambda shape: torch.zeros(shape)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    scheduler = type("Scheduler", (), {"__module__": module.__name__})()
    given = np.ones((2, 3), np.float32)
    with drawing(scheduler, lambda: given):
        assert module.randn_tensor((2, 3), generator=None).sum() == 6
    assert module.randn_tensor((2, 3)).sum() == 0


@needs_diffusers
@pytest.mark.filterwarnings("ignore")  # what diffusers warns of is its own
@pytest.mark.parametrize("sampler", sorted(SCHEDULERS))
@pytest.mark.parametrize("steps", [1, 4, 20])
def test_a_scheduler_asks_as_often_and_at_the_levels_that_it_is_told(sampler, steps):
    spacing = spacing_for(sampler, None)
    schedule = schedule_from(STABLE_DIFFUSION)
    rows = table.table_for(schedule, sampler, steps, schedule.last, spacing=spacing).rows
    levels = [row.t for row in rows]
    scheduler = make_scheduler(sampler, STABLE_DIFFUSION, levels)
    assert scheduler.timesteps.tolist() == levels
    assert np.allclose(scheduler.alphas_cumprod.numpy(), schedule.alphas_cumprod, rtol=1e-4)


@needs_diffusers
@pytest.mark.filterwarnings("ignore")
def test_other_levels_are_refused():
    with pytest.raises(UsageError, match="got 500, 0, expected 999, 499, those of diffusers'"):
        make_scheduler("ddim", STABLE_DIFFUSION, [500, 0])


def received(ldm, picture, tmp_path, *settings):
    """The measurement of the bundle with each of the settings in turn."""
    checkpoint, path = ldm
    result = tmp_path / "result.json"
    contestants = [f"{path},{each}" for each in settings]
    more = ["--images", picture, "--turns", 1, "--checkpoint", checkpoint, "--threads", 1]
    command = ["bench", "receivers", *contestants, *map(str, more), "--json", str(result)]
    assert main(command) == 0
    return json.loads(result.read_text(encoding="utf-8"))["contestants"]


@needs_diffusers
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "settings",
    [
        "sampler=ddpm,steps=4",
        "sampler=ddim,spacing=trailing,steps=4",
        "sampler=dpmpp2m,spacing=trailing,steps=4",
        "sampler=unipc,spacing=trailing,steps=4",
        "sampler=lcm,steps=4",
    ],
)
def test_diffusers_receives_the_same_picture(ldm, picture, tmp_path, capsys, settings):
    """Every step of the loop, with the runtime's noise, by networks and scheduler of diffusers.

    Its steps in another order, or at other levels, are another picture. Not so held are ``tcd``,
    which ends elsewhere, and the solvers at levels that make a step longer than the one before.
    """
    other = "sampler=ddim,spacing=linspace,steps=4"
    theirs, ours, another = received(
        ldm, picture, tmp_path, f"engine=diffusers,{settings}", settings, other
    )
    capsys.readouterr()
    assert theirs["engine"].startswith("diffusers ")
    assert [theirs["steps"], ours["steps"]] == [4, 4]
    assert set(theirs["stages_ms"]) == set(ours["stages_ms"])
    assert ours["psnr_to_first_db"] is None or ours["psnr_to_first_db"] > 70
    assert another["psnr_to_first_db"] < 50


@needs_diffusers
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_weights_of_another_checkpoint_are_refused(ldm, picture, tmp_path, capsys):
    _, path = ldm
    config = copy.deepcopy(tiny_checkpoint.LDM)
    for part in ("control_stage_config", "unet_config"):
        config["params"][part]["params"].update(channel_mult=[1], attention_resolutions=[])
    (tmp_path / "config.yaml").write_text(json.dumps(config), encoding="utf-8")
    command = ["bench", "receivers", f"{path},engine=diffusers,steps=1", "--images", picture]
    command += ["--config", tmp_path / "config.yaml", "--random-weights", 5]
    assert main([str(word) for word in command]) == 2
    told = capsys.readouterr().err
    assert "text.jscc: got the weights 'random weights, seed 5'" in told
    assert "expected 'model.ckpt'" in told
