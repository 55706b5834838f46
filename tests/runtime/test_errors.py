"""Errors: each kind survives the way from a worker process."""

import pickle

import pytest

from jscc.runtime import errors

KINDS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, errors.JsccError)
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_errors_are_copied_whole(kind):
    copy = pickle.loads(pickle.dumps(kind("E_TEST", "where: got 1, expected 2. Do it.")))
    assert type(copy) is kind
    assert str(copy) == "where: got 1, expected 2. Do it. [E_TEST]"
