"""Sizes to which images are brought, and how much that shrinks them beside the training images."""

import pytest

from sotr.data.sizes import good_tile, notes_on_size, shrinking

EDGES = (800, 1333)


@pytest.mark.parametrize(
    ("size", "usual", "factor", "tile"),
    [
        ((1600, 2000), None, 2.0, 800),
        ((800, 2666), None, 2.0, 800),  # the cap of the longest edge
        ((400, 400), None, 0.5, 800),
        # Trained on images of 12 megapixels, which are shrunk just as much.
        ((3000, 4000), (3000, 4000), 1.0, 3001),
        ((6000, 8000), (3000, 4000), 2.0, 3001),
        # Trained on small images, which were enlarged.
        ((400, 400), (200, 300), 2.0, 200),
    ],
)
def test_images_are_compared_to_the_training_images(
    size: tuple[int, int], usual: tuple[int, int] | None, factor: float, tile: int
) -> None:
    assert shrinking(*size, EDGES, usual) == pytest.approx(factor, rel=0.001)
    assert good_tile(EDGES, usual) == pytest.approx(tile, abs=1)
    # Objects in such a tile are as large to the network as in the training images.
    assert shrinking(good_tile(EDGES, usual), good_tile(EDGES, usual), EDGES, usual) == pytest.approx(1, rel=0.01)


def test_a_note_is_made_where_an_image_was_shrunk_much() -> None:
    assert notes_on_size((1600, 1600), EDGES, None, "tile={tile}") == []
    assert notes_on_size((2400, 2400), EDGES, None, "take tile={tile}") == [
        "the image was shrunk by a factor of 3.0 to fit the size of the model's training images; take tile=800"
    ]
    assert notes_on_size((2400, 2400), EDGES, (2400, 2000), "take tile={tile}") == []
    assert notes_on_size((600, 600), EDGES, (200, 200), "take tile={tile}") == [
        "the image was shrunk by a factor of 3.0 more than the model's training images; take tile=200"
    ]
