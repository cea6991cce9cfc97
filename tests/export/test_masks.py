"""Masks at the image's size, and resized images: the same as PyTorch makes them."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as tvf

from sotr.decode_options import DecodeOptions
from sotr.export.masks import full_size_rles
from sotr.export.resize import resize
from sotr.results.instances import Instances

SIDES = st.integers(1, 60)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3), st.integers(1, 3), SIDES, SIDES, st.booleans(), st.integers(0, 9))
def test_full_size_masks(rows: int, columns: int, height: int, width: int, probabilities: bool, seed: int) -> None:
    """Bilinear to the padded size, cut, bilinear to the original size, threshold."""
    padded = (32 * rows, 32 * columns)
    image_size = (padded[0] - 7 * seed % 31, padded[1] - 11 * seed % 31)
    generator = torch.Generator().manual_seed(seed)
    rough = torch.randn(3, 1, 4, 4, generator=generator) - 0.5
    logits = 6 * F.interpolate(rough, size=(8 * rows, 8 * columns), mode="bicubic")[:, 0]
    options = DecodeOptions(upsample="probabilities" if probabilities else "logits", mask_threshold=0.4)

    found = full_size_rles(logits.numpy(), padded, image_size, (height, width), options)

    maps = logits[None].sigmoid() if probabilities else logits[None]
    maps = F.interpolate(maps, size=padded, mode="bilinear", align_corners=False)[..., : image_size[0], : image_size[1]]
    if image_size != (height, width):
        maps = F.interpolate(maps, size=(height, width), mode="bilinear", align_corners=False)
    level = 0.4 if probabilities else options.threshold_logit
    masks_IHW = (maps[0] > level).numpy()
    near_IHW = ((maps[0] - level).abs() < 1e-4).numpy()
    for rle, mask_HW, near_HW in zip(found, masks_IHW, near_IHW, strict=True):
        if rle is None:
            assert not (mask_HW & ~near_HW).any()
            continue
        assert sum(rle["counts"]) == height * width
        assert all(count > 0 for count in rle["counts"][1:])
        made = Instances.from_rles([1.0], [0], [rle], ["x"], [1], (height, width)).masks_IHW[0]
        assert ((made == mask_HW) | near_HW).all()


def test_no_mask_and_extreme_logits() -> None:
    nothing = np.zeros((0, 8, 8), np.float32)
    assert full_size_rles(nothing, (32, 32), (32, 32), (10, 10), DecodeOptions()) == []
    certain = np.stack([np.full((8, 8), 1e4, np.float32), np.full((8, 8), -1e4, np.float32)])
    for upsample in ("logits", "probabilities"):
        options = DecodeOptions(upsample=upsample)
        full, empty = full_size_rles(certain, (32, 32), (20, 30), (5, 6), options)
        assert full == {"size": [5, 6], "counts": [0, 30]}
        assert empty is None


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 90), st.integers(1, 90), st.integers(0, 2**31))
def test_resized_pictures(height: int, width: int, new_height: int, new_width: int, seed: int) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    ours = resize(image, new_height, new_width)
    theirs = tvf.resize(torch.from_numpy(image).permute(2, 0, 1), [new_height, new_width], antialias=True)
    difference = np.abs(ours.astype(int) - theirs.permute(1, 2, 0).numpy())
    # PyTorch rounds weights to 16 bits only where it has AVX2 to use.
    exact = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    assert ours.shape == (new_height, new_width, 3)
    assert difference.max() <= (0 if exact else 1)
