"""A manifest whose parts contradict each other is refused, each with its place."""

from dataclasses import replace

import pytest

from jscc.runtime.coherence import check_coherence
from jscc.runtime.errors import BundleError
from jscc.runtime.manifest import FileEntry, ParityEntry, Selftest, SelftestCsi, TensorEntry
from jscc.runtime.manifest_loops import LoopStep
from jscc.runtime.ports import Port

ENTRY = FileEntry("0" * 64, 1)
VECTOR = Port("extra", "float32", ("batch",))


@pytest.fixture
def codec(shared_bundles):
    return shared_bundles["codec"].manifest


@pytest.fixture
def diffusion(shared_bundles):
    return shared_bundles["diffusion"].manifest


def refused(manifest, said, code="E_BUNDLE_INCONSISTENT"):
    with pytest.raises(BundleError, match=said) as caught:
        check_coherence(manifest)
    assert caught.value.code == code


def with_stage(manifest, name, **changes):
    stages = dict(manifest.stages)
    stages[name] = replace(stages[name], **changes)
    return replace(manifest, stages=stages)


def with_loop(manifest, **changes):
    return replace(manifest, loops={"denoise": replace(manifest.loops["denoise"], **changes)})


def with_sampler(manifest, **changes):
    return with_loop(
        manifest, sampler=replace(manifest.loops["denoise"].sampler, **changes)
    )  # fmt: skip


def with_port(manifest, stage, side, index, **changes):
    ports = list(getattr(manifest.stages[stage], side))
    ports[index] = replace(ports[index], **changes)
    return with_stage(manifest, stage, **{side: tuple(ports)})


def test_whole_manifests_pass(codec, diffusion):
    check_coherence(codec)
    check_coherence(diffusion)


def test_files(codec):
    files = {name: entry for name, entry in codec.files.items() if name != "graphs/decode.onnx"}
    refused(replace(codec, files=files), "/stages/decode/graph: got 'graphs/decode.onnx', .*lists")
    refused(with_stage(codec, "decode", graph="SOURCE.md"), "got 'SOURCE.md', expected a .onnx")
    refused(with_stage(codec, "decode", graph="graphs/encode.onnx"), "one file for two")
    more = {**codec.files, "graphs/spare.onnx": ENTRY}
    refused(replace(codec, files=more), "got 'graphs/spare.onnx', expected only")
    twins = {**codec.files, "source.MD": ENTRY, "Source.md": ENTRY}
    refused(replace(codec, files=twins), "'SOURCE.md' and", "E_BUNDLE_PATH")


def test_program(codec, diffusion):
    refused(replace(codec, program=("render",)), r"/program/0: got 'render', .*\['decode'\]")
    refused(replace(codec, program=("encode",)), "/program/0: got 'encode'")
    refused(replace(codec, program=("decode", "decode")), "each stage at most once")
    refused(replace(diffusion, program=("decode",)), r"/stages: got \['condition', 'denoise'")
    names = ("decode", "condition", "denoise", "render")
    refused(replace(diffusion, program=names), r"/loops: got \['denoise'\]")
    refused(replace(codec, program=(LoopStep("decode"),)), r"/loops: got \[\]")


def test_every_input_is_fed(codec, diffusion):
    wrong = replace(codec, signal=replace(codec.signal, csi_inputs=()))
    refused(wrong, "/stages/decode/inputs/1: got 'snr_db', expected one of")
    refused(with_port(codec, "decode", "inputs", 0, name="recieved"), "got 'recieved'")
    late = ("condition", "decode", LoopStep("denoise"), "render")
    refused(replace(diffusion, program=late), "/stages/condition/inputs/0: got 'reconstruction'")
    shape = ("batch", 4, "height/8", "width/8")
    refused(with_port(diffusion, "render", "inputs", 0, shape=shape), r"'latent' .*height/8")
    refused(with_port(codec, "decode", "inputs", 0, dtype="float16"), r"got 'received' float16")


def test_symbols_and_ports_agree(codec):
    """Row 27: the symbol count of the signal contract against the graphs' ports."""
    wrong = replace(codec, signal=replace(codec.signal, planes=8))
    refused(wrong, r"'received' float32\[batch,4,height/4,width/4\], expected float32\[batch,8")
    wrong = replace(codec, signal=replace(codec.signal, stride=8))
    refused(wrong, r"expected float32\[batch,4,height/8,width/8\]")


def test_each_name_has_one_producer(codec, diffusion):
    twice = codec.stages["decode"].outputs * 2
    refused(with_stage(codec, "decode", outputs=twice), "/stages/decode/outputs: got 'recon")
    stolen = (*codec.stages["decode"].outputs, replace(VECTOR, name="snr_db"))
    refused(with_stage(codec, "decode", outputs=stolen), "got 'snr_db', expected a name that")
    spare = replace(codec.tensors["selftest_image"], file="tensors/spare.npy")
    files = {**codec.files, "tensors/spare.npy": ENTRY}
    tensors = {**codec.tensors, "received": spare}
    refused(replace(codec, files=files, tensors=tensors), "/tensors/received: got 'received'")
    refused(replace(diffusion, side_inputs=("context", "context")), "/side_inputs/1: got 'context'")
    refused(replace(diffusion, side_inputs=("context", "words")), "got 'words', expected the name")


def test_image_output(codec):
    refused(
        replace(codec, image_output="picture"), "/image_output: got 'picture', expected a named"
    )
    extra = (*codec.stages["decode"].outputs, VECTOR)
    wrong = replace(with_stage(codec, "decode", outputs=extra), image_output="extra")
    refused(wrong, r"/image_output: got 'extra' float32\[batch\]")


def test_loops(diffusion):
    refused(with_loop(diffusion, state="clean"), "/loops/denoise/state: got 'clean', expected one")
    refused(with_loop(diffusion, start="nothing"), "/loops/denoise/start: got 'nothing'")
    refused(with_loop(diffusion, guide="reconstruction"), "/loops/denoise/guide: got 'recon")
    refused(with_port(diffusion, "denoise", "outputs", 0, shape=("batch", 4)), r"\[batch,4\] from")
    refused(with_sampler(diffusion, steps=1001), "got 1001, expected at most 1000 timesteps")
    refused(with_loop(diffusion, start=None), "got 'received', expected 'noise'")
    tested = Selftest("x", "y", SelftestCsi(7.0, (1.0, 0.0)), 0, 0, 30.0)
    refused(replace(diffusion, selftest=tested), "/selftest/steps: got 0, expected 1 to 1000")
    guided = with_sampler(diffusion, guidance=5.0)
    check_coherence(guided)
    refused(with_loop(guided, guide=None), "/guidance: got 5.0, expected 0")


def test_a_constant_of_one_item_serves_the_batch_and_no_other(diffusion):
    entry = replace(diffusion.tensors["bias"], shape=(2, 4, 1, 1))
    refused(replace(diffusion, tensors={"bias": entry}), r"'bias' .*expected float32\[2,4,1,1\]")


def test_encode(codec):
    refused(
        with_port(codec, "encode", "inputs", 0, name="snr_db", shape=("batch",)), "got 'snr_db'"
    )
    told = replace(codec, signal=replace(codec.signal, transmitter_csi=True))
    check_coherence(with_port(told, "encode", "inputs", 0, name="snr_db", shape=("batch",)))
    shape = ("batch", 6, "height/4", "width/4")
    refused(with_port(codec, "encode", "outputs", 0, shape=shape), r"outputs: got planes .*batch,6")


def test_sizes(codec, diffusion):
    image = codec.image
    refused(replace(codec, image=replace(image, multiple=6)), "got 6, expected a multiple of 4")
    refused(replace(codec, image=replace(image, max_pixels=63)), "got 63, expected 64 at least")
    refused(replace(codec, image=replace(image, tile=36)), "/image/tile: got 36 with overlap 8")
    refused(replace(codec, image=replace(image, overlap=17)), "got 32 with overlap 17")
    wrong = replace(diffusion, image=replace(image, tile=0, overlap=0))
    refused(wrong, "/stages/denoise/tiled: got true")
    refused(replace(diffusion, image=replace(image, overlap=6)), "divided by 4")
    signal = replace(codec.signal, snr_db_default=99.0)
    refused(replace(codec, signal=signal), r"got 99.0, expected a value in \[0.0, 14.0\]")


def at_size(manifest, height, width):
    """`manifest` for images of one size: integers where height and width stood."""

    def fix(dim):
        sizes = {"height": height, "width": width, "height/4": height // 4, "width/4": width // 4}
        return sizes.get(dim, dim)

    def fixed(ports):
        return tuple(replace(port, shape=tuple(map(fix, port.shape))) for port in ports)

    stages = {
        name: replace(stage, inputs=fixed(stage.inputs), outputs=fixed(stage.outputs))
        for name, stage in manifest.stages.items()
    }
    return replace(manifest, stages=stages)


def test_a_bundle_for_one_image_size(codec, diffusion):
    check_coherence(at_size(codec, 16, 24))
    fixed = at_size(diffusion, 16, 24)
    check_coherence(fixed)
    wrong = with_port(fixed, "render", "outputs", 0, shape=("batch", 3, 16, 32))
    refused(wrong, r"/image_output: got 'image' float32\[batch,3,16,32\], .*\[batch,3,16,24\]")
    wrong = with_port(at_size(codec, 16, 24), "encode", "inputs", 0, shape=("batch", 3, 8, 24))
    refused(wrong, r"'image' float32\[batch,3,8,24\], expected float32\[batch,3,16,24\]")
    refused(at_size(codec, 12, 24), "/image: got 12x24 in the ports, expected multiples of 8")


def test_records(codec):
    entry = ParityEntry(0.0, None, (8, 8))
    refused(
        replace(codec, parity={"render": {"image": entry}}), r"/parity: got 'render' \['image'\]"
    )
    refused(
        replace(codec, parity={"decode": {"image": entry}}), r"/parity: got 'decode' \['image'\]"
    )


def test_selftest(codec):
    selftest = codec.selftest
    refused(replace(codec, selftest=replace(selftest, image="x")), "/selftest: got an unknown")
    symbols, image = codec.tensors["selftest_symbols"], codec.tensors["selftest_image"]

    def tensors(symbols: TensorEntry, image: TensorEntry):
        return replace(codec, tensors={"selftest_symbols": symbols, "selftest_image": image})

    wrong = replace(symbols, shape=(4, 2, 4))
    refused(
        tensors(wrong, image), r"symbols: got complex64\[4, 2, 4\], expected complex64\[2, rows"
    )
    refused(tensors(replace(symbols, dtype="float32"), image), "got float32")
    wrong = replace(image, shape=(9, 16, 3))
    refused(
        tensors(symbols, wrong), r"image: got uint8\[9, 16, 3\], expected uint8\[up to 8, up to 16"
    )
