"""Objects in a notebook: the overlay, the table, and the image that is not kept for them."""

import base64
import copy
import gc
import io
import pickle
import re
from pathlib import Path

import numpy as np
from PIL import Image

from sotr.results.instances import Instances
from sotr.results.notebook import BACKGROUND, LONGEST_EDGE, MOST_PIXELS, ROWS

IMAGE = np.full((700, 800, 3), (10, 200, 30), np.uint8)


def squares(count: int, size: tuple[int, int] = (700, 800), names: tuple[str, ...] = ("a", "b")) -> Instances:
    masks = np.zeros((count, *size), bool)
    for i, mask in enumerate(masks):
        mask[20 * i + 2 : 20 * i + 12, 5:15] = True
    return Instances.from_masks(np.linspace(0.9, 0.1, count), [0] * count, masks, names, range(len(names)))


def shown(instances: Instances) -> np.ndarray:
    """The overlay in the HTML."""
    found = re.search(r"data:image/jpeg;base64,([^\"]+)", instances._repr_html_())
    assert found
    return np.array(Image.open(io.BytesIO(base64.b64decode(found[1]))))


def test_the_table_lists_the_first_objects_and_counts_the_others() -> None:
    html = squares(3)._repr_html_()
    assert html.count("<tr>") == 4
    assert "<td>0</td><td>a</td><td>0.900</td><td>100</td>" in html
    assert "3 objects in 700 x 800 px; a: 3" in html
    assert "more" not in html
    many = squares(ROWS + 5)._repr_html_()
    assert many.count("<tr>") == ROWS + 1
    assert "and 5 more" in many
    assert "1 object in" in squares(1)._repr_html_()


def test_names_are_escaped_and_no_object_needs_no_table() -> None:
    assert "<script>" not in squares(2, names=("<script>", "b"))._repr_html_()
    empty = Instances.empty(["a"], [1], (30, 40))._repr_html_()
    assert "0 objects in 30 x 40 px" in empty
    assert "<table" not in empty


def test_objects_are_drawn_on_their_image_as_long_as_it_is_there() -> None:
    image = IMAGE.copy()
    found = squares(2).with_image(image)
    assert np.array_equal(found.draw(), found.draw(image))
    assert np.abs(shown(found)[600, 600].astype(int) - (10, 200, 30)).max() < 12
    # What is made of the objects knows the image, too.
    for derived in (found[0], found.filter(0.5), found + found, found.without_overlap()):
        assert np.array_equal(derived.draw(), derived.draw(image))
    del image
    gc.collect()
    assert found.source is not None
    assert found.source.image() is None
    assert (found.draw()[600, 600] == BACKGROUND).all()
    assert np.abs(shown(found)[600, 600].astype(int) - BACKGROUND).max() < 6


def test_a_file_is_kept_by_its_path_and_may_change(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    Image.fromarray(IMAGE).save(path)
    found = pickle.loads(pickle.dumps(squares(2).with_image(path)))
    assert (found.draw()[600, 600] == (10, 200, 30)).all()
    Image.fromarray(IMAGE[:50]).save(path)  # another image now
    assert (found.draw()[600, 600] == BACKGROUND).all()
    path.unlink()
    assert (found.draw()[600, 600] == BACKGROUND).all()


def test_copies_do_not_carry_the_image() -> None:
    found = squares(1).with_image(IMAGE)
    for other in (pickle.loads(pickle.dumps(found)), copy.deepcopy(found)):
        assert other.rles == found.rles
        assert (other.draw()[600, 600] == BACKGROUND).all()


def test_large_overlays_are_shrunk_and_very_large_ones_left_out() -> None:
    assert max(shown(squares(1, (300, 2000))).shape) == LONGEST_EDGE
    side = int(MOST_PIXELS**0.5) + 1
    html = Instances.empty(["a"], [1], (side, side))._repr_html_()
    assert "<img" not in html
    assert "draw(image)" in html
