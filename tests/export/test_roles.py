"""Values of the command line find their network: by a role's name, never by chance."""

import pytest

from jscc.export.roles import by_role, reference_folder, split_role
from jscc.runtime.errors import UsageError

ROLES = {"codec": "af-96", "prior": "prior"}


def test_a_role_and_its_value():
    assert split_role("prior=a/b=c.pt", ROLES, "--checkpoint") == ("prior", "a/b=c.pt")
    assert split_role("a/b.pt", ROLES, "--checkpoint") == (None, "a/b.pt")
    assert split_role("/data/lr=3.pt", ROLES, "--checkpoint") == (None, "/data/lr=3.pt")


def test_a_system_of_one_network_takes_any_value_as_it_is():
    assert split_role("codec=3.pt", {"": "diffjscc"}, "--checkpoint") == ("", "codec=3.pt")


def test_a_file_whose_name_looks_like_a_role(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=3.pt").touch()
    assert split_role("lr=3.pt", ROLES, "--checkpoint") == (None, "lr=3.pt")


def test_a_role_that_the_system_lacks():
    with pytest.raises(UsageError, match="--config: got the role 'inn', expected one of codec"):
        split_role("inn=x.yaml", ROLES, "--config")


def test_values_of_one_role_stay_in_order():
    texts = ("codec=a.pt", "b.pt", "codec=c.pt", "d.pt")
    assert by_role(texts, ROLES, "--checkpoint") == {
        "codec": ("a.pt", "c.pt"),
        None: ("b.pt", "d.pt"),
    }


@pytest.mark.parametrize("name", ["nobody", "../reference/diffjscc", ""])
def test_reference_weights_that_are_none(name):
    with pytest.raises(UsageError, match=f"got {name!r}, expected one of .*diffjscc") as caught:
        reference_folder(name)
    assert caught.value.code == "E_REFERENCE"


def test_reference_weights_lie_beside_their_configuration():
    assert (reference_folder("diffjscc") / "model.safetensors").is_file()
