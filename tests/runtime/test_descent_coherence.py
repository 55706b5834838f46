"""Coherence of descents: what does not fit together is refused, with the place of the fault."""

import dataclasses

import pytest

import tiny_descent
from jscc.runtime.coherence import check_coherence
from jscc.runtime.declared import needed_format
from jscc.runtime.errors import BundleError
from jscc.runtime.manifest import parse_manifest, serialise_manifest
from jscc.runtime.manifest_loops import LoopStep, Round, Variable
from jscc.runtime.ports import Port

replace = dataclasses.replace


@pytest.fixture
def manifest(tmp_path):
    return tiny_descent.write_descending(tmp_path / "tiny.jscc").manifest


def refused(manifest, said):
    with pytest.raises(BundleError, match=said) as caught:
        check_coherence(manifest)
    assert caught.value.code == "E_BUNDLE_INCONSISTENT"


def with_descent(manifest, **changes):
    descent = replace(manifest.descents["find"], **changes)
    return replace(manifest, descents={"find": descent})


def with_stage(manifest, name, **changes):
    stage = replace(manifest.stages[name], **changes)
    return replace(manifest, stages={**manifest.stages, name: stage})


def test_the_bundle_as_it_is(manifest):
    check_coherence(manifest)
    assert needed_format(manifest) == 2
    assert parse_manifest(serialise_manifest(manifest)) == manifest


def test_a_descent_that_the_program_does_not_run(manifest):
    refused(replace(manifest, program=("decode",), image_output="reconstruction"), "at /stages")
    twice = replace(manifest, descents={**manifest.descents, "other": manifest.descents["find"]})
    refused(twice, r"at /loops: got \['find', 'other'\]")


def test_a_descent_named_like_a_stage(manifest):
    descents = {"render": manifest.descents["find"]}
    refused(
        replace(manifest, descents=descents, program=("decode", LoopStep("render"))),
        r"at /descents: got \['render'\]",
    )


def test_a_stage_that_is_not_there(manifest):
    refused(with_descent(manifest, render="paint"), "at /program/1: got 'paint'")


def test_a_stage_of_open_size(manifest):
    open_port = Port("look", "float32", ("batch", 3, 32, 32))
    outputs = manifest.stages["carry"].outputs
    refused(
        with_stage(manifest, "carry", inputs=(open_port,), outputs=outputs),
        r"at /stages/carry/inputs/0: got 'look' float32\[batch,3,32,32\]",
    )
    refused(with_stage(manifest, "render", tiled=True), "at /stages/render/tiled: got true")


def test_an_input_that_nothing_feeds(manifest):
    refused(with_descent(manifest, settings={}), "/stages/first/inputs/3: got 'weight'")


def test_a_knob_named_like_a_tensor(manifest):
    refused(
        with_descent(manifest, settings={"weight": 1.0, "reconstruction": 2.0}),
        "/descents/find: got 'reconstruction'",
    )


def test_an_input_of_another_tile(manifest):
    image = replace(manifest.image, tile=40)
    refused(replace(manifest, image=image), r"got 'reconstruction' float32\[1,3,32,32\]")


def test_a_gradient_stage_without_loss_or_gradients(manifest):
    outputs = manifest.stages["first"].outputs
    refused(
        with_stage(manifest, "first", outputs=outputs[1:]),
        "/stages/first/outputs: got grad_look",
    )
    refused(with_stage(manifest, "first", outputs=outputs[:1]), "/stages/first/outputs: got loss")


def test_a_gradient_of_no_variable(manifest):
    loss, _ = manifest.stages["first"].outputs
    for port in (
        Port("grad_lift", "float32", tiny_descent.PICTURE),
        Port("look", "float32", tiny_descent.PICTURE),
        Port("grad_look", "float32", (1, 3, 32, 16)),
    ):
        refused(
            with_stage(manifest, "first", outputs=(loss, port)),
            f"/stages/first/outputs: got '{port.name}'",
        )


def test_a_stage_before_a_round_that_makes_no_variable(manifest):
    variables = {**manifest.descents["find"].variables, "lift": Variable("normal", 0)}
    refused(with_descent(manifest, variables=variables), "/rounds/1/before: got 'lift'")


def test_a_variable_that_never_begins(manifest):
    variables = {**manifest.descents["find"].variables, "ghost": Variable("stage", 0)}
    refused(with_descent(manifest, variables=variables), r"/variables: got \['ghost'\]")


def test_a_variable_used_before_it_is_made(manifest):
    rounds = (Round("second", 2, 0.1, None), Round("first", 2, 0.1, "carry"))
    refused(with_descent(manifest, rounds=rounds), "/stages/second/inputs/1: got 'lift'")


def test_a_sphere_of_too_many_axes(manifest):
    variables = {**manifest.descents["find"].variables, "look": Variable("normal", 4)}
    refused(with_descent(manifest, variables=variables), "/variables/look/sphere: got 4")


def test_a_rendered_tile_of_another_size(manifest):
    small = Port("image", "float32", (1, 3, 16, 16))
    refused(with_stage(manifest, "render", outputs=(small,)), "/stages/render/outputs: got 'image'")


def test_manifests_with_impossible_numbers(manifest):
    text = serialise_manifest(manifest).decode()
    for old, new, said in (
        ('"betas": [\n    0.9,', '"betas": [\n    1.0,', "/descents/find/betas"),
        ('"keep": "best"', '"keep": "worst"', "/descents/find/keep"),
        ('"sphere": 2', '"sphere": 9', "/descents/find/variables/still/sphere"),
        ('"steps": 60', '"steps": 0', "/descents/find/rounds/0/steps"),
    ):
        assert old in text
        with pytest.raises(BundleError, match=said):
            parse_manifest(text.replace(old, new).encode())
