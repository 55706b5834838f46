"""What format 2 lets a manifest say of a loop, and what contradicts itself there."""

from dataclasses import replace

import pytest

from jscc.runtime.coherence import check_coherence
from jscc.runtime.declared import needed_format
from jscc.runtime.errors import BundleError
from jscc.runtime.manifest import FileEntry, StageEntry, parse_manifest, serialise_manifest
from jscc.runtime.ports import Port

VECTOR = ("batch",)
GRID = ("batch", 4, "height/4", "width/4")


@pytest.fixture
def plain(shared_bundles):
    return shared_bundles["diffusion"].manifest


def with_loop(manifest, **changes):
    return replace(manifest, loops={"denoise": replace(manifest.loops["denoise"], **changes)})


def with_sampler(manifest, **changes):
    return with_loop(manifest, sampler=replace(manifest.loops["denoise"].sampler, **changes))


def with_stage(manifest, name, entry):
    files = {**manifest.files, entry.graph: FileEntry("0" * 64, 1)}
    return replace(manifest, stages={**manifest.stages, name: entry}, files=files)


@pytest.fixture
def guided(plain):
    """The bundle with a knob, a direction and a guide of its own."""
    entry = plain.stages["denoise"]
    inputs = (
        *entry.inputs,
        Port("noise", "float32", GRID),
        Port("alpha_bar_next", "float32", VECTOR),
        Port("eta", "float32", VECTOR),
    )
    outputs = (*entry.outputs, Port("direction", "float32", GRID))
    entry = replace(entry, inputs=inputs, outputs=outputs)
    guide = StageEntry(
        "graphs/guided.onnx",
        20,
        True,
        inputs[1:] + inputs[:1] + (Port("alpha_bar", "float32", VECTOR),),
        (*outputs, Port("grad", "float32", GRID)),
    )
    manifest = with_stage(with_stage(plain, "denoise", entry), "guided", guide)
    manifest = with_loop(manifest, settings={"eta": 0.85}, guides={"inn": "guided"})
    return with_sampler(manifest, guide="inn", guide_every=2, travel=(3, 2), guidance=4.0)


def with_ports(manifest, stage, side, change):
    entry = manifest.stages[stage]
    ports = tuple(change(port) for port in getattr(entry, side))
    return with_stage(manifest, stage, replace(entry, **{side: ports}))


def altered(old, **changes):
    return lambda port: replace(port, **changes) if port.name == old else port


def refused(manifest, said):
    with pytest.raises(BundleError, match=said) as caught:
        check_coherence(manifest)
    assert caught.value.code == "E_BUNDLE_INCONSISTENT"


def test_old_bundles_stay_as_they_are(plain):
    check_coherence(plain)
    assert needed_format(plain) == 1
    assert b"settings" not in serialise_manifest(plain)
    assert b"travel" not in serialise_manifest(plain)


def test_all_of_it_is_written_and_read(guided):
    check_coherence(guided)
    assert needed_format(guided) == 2
    told = replace(guided, format=2)
    assert parse_manifest(serialise_manifest(told)) == told


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"travel": (0, 1)}, "/loops/denoise/sampler/travel: got .*expected two numbers, 1"),
        ({"guide_every": 0}, "/loops/denoise/sampler/guide_every: got 0, expected 1 to 10000"),
    ],
)
def test_values_out_of_range_are_refused(guided, changes, shown):
    wrong = replace(with_sampler(guided, **changes), format=2)
    with pytest.raises(BundleError, match=shown):
        parse_manifest(serialise_manifest(wrong))


CURVE = ((1.0, 4.0), (7.0, 0.5))


def test_a_weight_for_each_snr_is_written_and_read(guided):
    curved = replace(with_sampler(guided, guidance_by_snr=CURVE), format=2)
    check_coherence(curved)
    assert parse_manifest(serialise_manifest(curved)) == curved
    assert b"guidance_by_snr" not in serialise_manifest(replace(guided, format=2))


def test_a_weight_for_each_snr_needs_format_2(plain):
    curved = with_sampler(plain, guidance_by_snr=CURVE)
    assert needed_format(curved) == 2
    with pytest.raises(BundleError, match="/format: got 1, expected 2, which added keys"):
        serialise_manifest(curved)


@pytest.mark.parametrize(
    "curve",
    [
        ((1.0, -4.0),),
        ((1.0, 1e10),),
        ((7.0, 1.0), (1.0, 4.0)),
        ((7.0, 1.0), (7.0, 4.0)),
        ((1e4, 1.0),),
        tuple((float(snr_db), 4.0) for snr_db in range(65)),
    ],
)
def test_weights_that_are_none_are_refused(guided, curve):
    wrong = replace(with_sampler(guided, guidance_by_snr=curve), format=2)
    shown = "/loops/denoise/sampler/guidance_by_snr: got .*expected at most 64 pairs of an SNR"
    with pytest.raises(BundleError, match=shown):
        parse_manifest(serialise_manifest(wrong))


def test_a_weight_that_is_no_number_cannot_be_written(guided):
    wrong = replace(with_sampler(guided, guidance_by_snr=((1.0, float("nan")),)), format=2)
    with pytest.raises(BundleError, match="NaN"):
        serialise_manifest(wrong)


def test_the_weight_is_the_largest_of_those_by_snr(guided):
    wrong = with_sampler(guided, guidance_by_snr=((1.0, 3.0), (7.0, 0.5)))
    refused(wrong, "/guidance: got 4.0, expected 3.0, the largest of guidance_by_snr")


def test_a_knob_that_no_float32_holds_is_refused(guided):
    wrong = replace(with_loop(guided, settings={"eta": 1e300}), format=2)
    with pytest.raises(BundleError, match=r"/loops/denoise/settings/eta: got 1e\+300, expected"):
        parse_manifest(serialise_manifest(wrong))


def test_knobs(guided):
    refused(
        with_loop(guided, settings={"zeta": 1.0}),
        "/loops/denoise/settings: got 'zeta', expected a name that a stage of it reads",
    )
    wrong = with_ports(guided, "denoise", "inputs", altered("eta", shape=("batch", 2)))
    refused(wrong, r"'eta' float32\[batch,2\], expected float32\[batch\]")
    clash = with_loop(guided, settings={"eta": 1.0, "hint": 2.0})
    refused(clash, "/loops/denoise/settings: got 'hint', expected a name that nothing else has")


def test_what_a_step_is_about(guided):
    wrong = with_ports(guided, "denoise", "inputs", altered("noise", shape=("batch", 4, 1, 1)))
    refused(wrong, r"'noise' float32\[batch,4,1,1\], expected float32\[batch,4,height/4,width/4\]")
    wrong = with_ports(guided, "denoise", "outputs", altered("direction", shape=VECTOR))
    refused(wrong, r"/stages/denoise/outputs: got 'direction' float32\[batch\]")


def test_guides(guided):
    refused(with_sampler(guided, guide="none"), r"guide: got 'none', expected one of \['inn'\]")
    refused(with_loop(guided, guides={"inn": "absent"}), "got 'absent', expected one of")
    unused = with_sampler(with_loop(guided, guides={}), guide=None, guidance=0.0)
    refused(unused, r"/stages: got \['guided'\], expected stages that the program runs")
    lacking = with_ports(guided, "guided", "outputs", altered("grad", name="slope"))
    refused(lacking, r"/stages/guided/outputs: got .*'slope'.*'clean' first")
    wrong = with_ports(guided, "guided", "outputs", altered("grad", shape=VECTOR))
    refused(wrong, r"/stages/guided/outputs: got 'grad' float32\[batch\]")
    stranger = with_ports(guided, "guided", "inputs", altered("hint", name="latent_hint"))
    refused(stranger, "/stages/guided/inputs/1: got 'latent_hint', expected one of")


def test_a_weight_needs_something_to_weigh(plain):
    bare = with_loop(plain, guide=None)
    refused(with_sampler(bare, guidance=1.0), "guidance: got 1.0, expected 0")


def at_size(manifest, batch, edge):
    sizes = {"batch": batch, "height/4": edge // 4, "width/4": edge // 4}

    def fix(port):
        return replace(port, shape=tuple(sizes.get(dim, dim) for dim in port.shape))

    return with_ports(with_ports(manifest, "guided", "inputs", fix), "guided", "outputs", fix)


def test_a_guide_may_be_for_single_tiles(guided):
    assert guided.image.tile == 32
    check_coherence(at_size(guided, 1, 32))
    refused(at_size(guided, 2, 32), "/stages/guided: got batch 2 fixed, expected any batch, or")
    refused(at_size(guided, 1, 64), "/stages/guided: got height 64 fixed")
