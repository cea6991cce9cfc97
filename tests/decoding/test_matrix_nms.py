import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sotr.decoding import matrix_nms


def literal_matrix_nms(masks, labels, scores, sigma):
    """Matrix NMS (SOLOv2, equation 5), one pair of masks at a time."""

    def iou(i, j):
        union = (masks[i] | masks[j]).sum().item()
        return (masks[i] & masks[j]).sum().item() / union if union else 0.0

    def better(j):
        return [i for i in range(j) if labels[i] == labels[j]]

    decayed = []
    for j in range(len(scores)):
        decay = 1.0
        for i in better(j):
            most_suppressed = max((iou(k, i) for k in better(i)), default=0.0)
            decay = min(decay, math.exp(-sigma * iou(i, j) ** 2) / math.exp(-sigma * most_suppressed**2))
        decayed.append(scores[j].item() * decay)
    return torch.tensor(decayed)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 12), st.integers(1, 3), st.integers(0, 10**6), st.sampled_from([0.5, 2.0]))
def test_equals_the_literal_loop(count, classes, seed, sigma):
    torch.manual_seed(seed)
    masks = torch.rand(count, 24) < torch.rand(count, 1)  # some empty, some full
    labels = torch.randint(0, classes, (count,))
    scores = torch.rand(count).sort(descending=True).values
    found = matrix_nms(masks, labels, scores, sigma)
    torch.testing.assert_close(found, literal_matrix_nms(masks, labels, scores, sigma), rtol=1e-4, atol=1e-6)


def test_best_mask_keeps_its_score_and_its_copy_loses_most():
    masks = torch.ones(2, 9, dtype=torch.bool)
    found = matrix_nms(masks, torch.zeros(2), torch.tensor([0.9, 0.8]), sigma=2.0)
    torch.testing.assert_close(found, torch.tensor([0.9, 0.8 * math.exp(-2.0)]))


def test_other_classes_do_not_suppress():
    masks = torch.ones(2, 9, dtype=torch.bool)
    scores = torch.tensor([0.9, 0.8])
    assert torch.equal(matrix_nms(masks, torch.tensor([0, 1]), scores), scores)
