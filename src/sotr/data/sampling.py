"""Which images an epoch shows, and in which order: a function of (seed, epoch), shared out among processes."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from sotr.data.coco import CocoDataset
from sotr.data.transforms import Augmentation


class EpochSampler(Sampler[tuple[int, ...]]):
    """The order of an epoch's samples, as (epoch, index); a function of (seed, epoch).

    The position is where the next iteration starts, counted over all processes. It does not move by itself: the
    training loop sets it, with `set_epoch` for a new epoch or `set_position` on resume. The length is that of the whole
    epoch wherever it starts.

    Args:
        length: samples of the dataset.
        groups_N: a number per sample; shuffling then puts samples of one group side by side, `batch_size` at a time,
            as far as their count allows. Images of one shape in a batch need no padding.
        batch_size: samples per step, of all processes together.
        rank, ranks: this process among those that share each step's batch out between them. What would fill no batch is
            then left out; a data set smaller than one batch is repeated.
        repeats_N: how often each sample should occur in an epoch, on average over the epochs. A sample that occurs
            again is (epoch, index, copy), copy from 1.
    """

    def __init__(
        self,
        length: int,
        seed: int = 0,
        shuffle: bool = True,
        epoch: int = 0,
        groups_N: NDArray[np.int64] | None = None,
        batch_size: int = 1,
        rank: int = 0,
        ranks: int = 1,
        repeats_N: NDArray[np.float64] | None = None,
    ) -> None:
        self.length = length if repeats_N is None else round(float(repeats_N.sum()))
        self.seed, self.shuffle = seed, shuffle
        self.epoch, self.start = epoch, 0
        self.groups_N, self.batch_size = groups_N, batch_size
        self.rank, self.ranks = rank, ranks
        self.repeats_N = repeats_N

    def __len__(self) -> int:
        return self.length if self.ranks == 1 else self._whole() // self.ranks

    def _whole(self) -> int:
        """Samples of an epoch's whole batches, at least one."""
        return max(self.batch_size, self.length // self.batch_size * self.batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of `epoch`, unless that is the current one: then the position stays."""
        if epoch != self.epoch:
            self.set_position(epoch, 0)

    def set_position(self, epoch: int, start: int) -> None:
        """Go to `epoch`, of which `start` samples are done already."""
        self.epoch, self.start = epoch, start

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        generator = np.random.default_rng((self.seed, self.epoch))
        indices, copies = self._drawn(generator)
        order: NDArray[np.int64] = np.arange(self.length)
        if self.shuffle:
            order = generator.permutation(order)
            if self.groups_N is not None:
                order = _side_by_side(order, self.groups_N[indices[order]], self.batch_size, generator)
        if self.ranks > 1:
            batches = np.resize(order, self._whole())[self.start :].reshape(
                -1, self.ranks, self.batch_size // self.ranks
            )
            order = batches[:, self.rank].ravel()
        else:
            order = order[self.start :]
        epoch = self.epoch
        return iter(
            [
                (epoch, index, copy) if copy else (epoch, index)
                for index, copy in zip(indices[order].tolist(), copies[order].tolist(), strict=True)
            ]
        )

    def _drawn(self, generator: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The samples of an epoch, in ascending order, and the number of each among those that are alike."""
        if self.repeats_N is None:
            return np.arange(self.length), np.zeros(self.length, np.int64)
        # Marks at equal distances, shifted at random: each sample gets as many as it repeats, rounded up or down.
        ends_N = np.cumsum(self.repeats_N)
        marks = (np.arange(self.length) + generator.random()) * (ends_N[-1] / self.length)
        indices = np.minimum(np.searchsorted(ends_N, marks, side="right"), len(ends_N) - 1)
        return indices, np.arange(self.length) - np.searchsorted(indices, indices)


def _side_by_side(
    order: NDArray[np.int64], groups_N: NDArray[np.int64], batch_size: int, generator: np.random.Generator
) -> NDArray[np.int64]:
    """The same samples with those of a group together in batches, the batches in random order."""
    # What fills no batch, and may be left out, is taken from all groups alike: the last of the random order.
    cut = len(order) // batch_size * batch_size
    order, last, groups_N = order[:cut], order[cut:], groups_N[:cut]
    whole, rest = [], []
    for group in np.unique(groups_N):
        members = order[groups_N == group]
        full = len(members) // batch_size * batch_size
        whole.append(members[:full])
        rest.append(members[full:])  # the groups are in order, so neighbors in shape meet here
    batches = np.concatenate([*whole, *rest, order[:0]]).reshape(-1, batch_size)
    return np.concatenate([generator.permutation(batches).ravel(), last])


def shape_groups(coco: CocoDataset, augmentation: Augmentation) -> NDArray[np.int64]:
    """A number per image, alike for images whose shape is within a fifth of one another when they enter a batch."""
    ratio_N: NDArray[np.float64] = np.log(coco.sizes_N2[:, 0] / coco.sizes_N2[:, 1])
    if augmentation.rotate90:
        ratio_N = np.abs(ratio_N)
    return np.round(ratio_N / np.log(1.2)).astype(np.int64)


def repeat_factors(coco: CocoDataset, threshold: float) -> NDArray[np.float64]:
    """How often each image should occur in an epoch so that rare classes are seen more often (Gupta et al. 2019).

    A class that is in the share f of the images has the factor max(1, sqrt(threshold / f)); an image has the largest
    of its classes' factors. Crowds do not count.
    """
    pictures = np.repeat(np.arange(len(coco)), np.diff(coco.offsets))
    pairs = np.unique(np.stack([pictures, coco.labels])[:, ~coco.iscrowd], axis=1)
    share_M = np.bincount(pairs[1], minlength=len(coco.class_names)) / max(1, len(coco))
    factor_M = np.sqrt(threshold / np.maximum(share_M, 1e-12))
    repeats_N = np.ones(len(coco))
    np.maximum.at(repeats_N, pairs[0], factor_M[pairs[1]])
    return repeats_N
