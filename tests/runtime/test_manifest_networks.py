"""Sources of several networks and reflected padding in a manifest: written only where used."""

import json
from dataclasses import replace

import pytest

from jscc.runtime.errors import BundleError
from jscc.runtime.manifest import NetworkSource, parse_manifest, serialise_manifest

NETWORKS = {
    "codec": NetworkSource(name="codec.pt", sha256="1" * 64, licence="MIT"),
    "prior": NetworkSource(name="prior.pt", sha256="2" * 64, licence="unknown"),
}


@pytest.fixture
def manifest(shared_bundles):
    return shared_bundles["codec"].manifest


def test_an_old_manifest_means_one_network_and_zeros(manifest):
    tree = json.loads(serialise_manifest(manifest))
    assert "networks" not in tree["source"]
    assert "padding" not in tree["image"]
    assert manifest.source.networks == {}
    assert manifest.image.padding == "zeros"


def test_several_networks_come_back(manifest):
    several = replace(manifest, format=2, source=replace(manifest.source, networks=NETWORKS))
    tree = json.loads(serialise_manifest(several))
    assert tree["source"]["networks"]["prior"]["sha256"] == "2" * 64
    assert parse_manifest(serialise_manifest(several)) == several


def test_reflected_padding_comes_back(manifest):
    reflecting = replace(manifest, format=2, image=replace(manifest.image, padding="reflect"))
    assert json.loads(serialise_manifest(reflecting))["image"]["padding"] == "reflect"
    assert parse_manifest(serialise_manifest(reflecting)) == reflecting


@pytest.mark.parametrize(
    ("place", "value", "shown"),
    [
        (("image", "padding"), "mirror", r'at /image/padding: got "mirror"'),
        (("source", "networks"), {"codec": {"name": "a"}}, "at /source/networks/codec"),
        (("source", "networks"), {"Codec": {}}, "at /source/networks"),
    ],
)
def test_other_words_are_refused(manifest, place, value, shown):
    tree = json.loads(serialise_manifest(replace(manifest, format=2)))
    tree[place[0]][place[1]] = value
    with pytest.raises(BundleError, match=shown) as caught:
        parse_manifest(json.dumps(tree).encode())
    assert caught.value.code == "E_MANIFEST"
