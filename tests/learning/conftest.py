import pytest

from tests.scenes import make_targets, random_masks


@pytest.fixture
def targets_of():
    return make_targets


@pytest.fixture
def masks_of():
    return random_masks
