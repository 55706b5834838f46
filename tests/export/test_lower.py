"""What is said of a lowered stage: the size at which it was compared with torch."""

import pytest

from jscc.export.lower import Sizes, compared_size
from jscc.runtime.ports import Port

PROVED = Sizes(multiple=32).proved()
OPEN = Port("image", "float32", ("batch", 3, "height", "width"))
SMALL = Port("coarse", "float32", ("batch", 3, "height/4", "width/4"))
NUMBER = Port("timestep", "float32", ("batch",))
TILE = Port("state", "float32", (1, 3, 128, 128))
TILE_COARSE = Port("coarse", "float32", (1, 3, 32, 32))
LATENT = Port("latent", "float32", (1, 14, 512))


@pytest.mark.parametrize(
    ("ports", "size"),
    [
        ((OPEN, NUMBER), (256, 192)),
        ((SMALL,), (256, 192)),  # of the image, not of its own
        ((TILE_COARSE, NUMBER, TILE), (128, 128)),
        ((LATENT, TILE), (128, 128)),
        ((TILE, OPEN), (256, 192)),
        ((LATENT, NUMBER), (256, 192)),
    ],
)
def test_the_size_is_the_one_that_the_stage_ran_at(
    ports: tuple[Port, ...], size: tuple[int, int]
) -> None:
    assert compared_size(ports, PROVED) == size
