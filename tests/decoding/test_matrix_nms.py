import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sotr.decoding.matrix_nms import mask_iou, mask_nms, matrix_nms


def literal_matrix_nms(masks, labels, scores, sigma, kernel):
    """Matrix NMS (SOLOv2, equations 4 and 5), one pair of masks at a time."""

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
            if kernel == "gaussian":
                decay = min(decay, math.exp(-sigma * iou(i, j) ** 2) / math.exp(-sigma * most_suppressed**2))
            elif most_suppressed < 1:  # of a mask that is a copy of a better one, that one's decay is the stricter
                decay = min(decay, (1 - iou(i, j)) / (1 - most_suppressed))
        decayed.append(scores[j].item() * decay)
    return torch.tensor(decayed)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 12), st.integers(1, 3), st.integers(0, 10**6), st.sampled_from(["gaussian", "linear"]))
def test_equals_the_literal_loop(count, classes, seed, kernel):
    torch.manual_seed(seed)
    masks = torch.rand(count, 24) < torch.rand(count, 1)  # some empty, some full
    labels = torch.randint(0, classes, (count,))
    scores = torch.rand(count).sort(descending=True).values
    found = matrix_nms(mask_iou(masks), labels, scores, 1.5, kernel)
    torch.testing.assert_close(found, literal_matrix_nms(masks, labels, scores, 1.5, kernel), rtol=1e-4, atol=1e-6)


def test_best_mask_keeps_its_score_and_its_copy_loses_most():
    masks = torch.ones(2, 9, dtype=torch.bool)
    found = matrix_nms(mask_iou(masks), torch.zeros(2), torch.tensor([0.9, 0.8]), sigma=2.0)
    torch.testing.assert_close(found, torch.tensor([0.9, 0.8 * math.exp(-2.0)]))


def test_other_classes_do_not_suppress():
    masks = torch.ones(2, 9, dtype=torch.bool)
    scores = torch.tensor([0.9, 0.8])
    assert torch.equal(matrix_nms(mask_iou(masks), torch.tensor([0, 1]), scores), scores)


def test_mask_nms_is_greedy():
    masks = torch.zeros(4, 10, dtype=torch.bool)
    masks[0, :6] = True
    masks[1, 1:7] = True  # IoU 5/7 with the first: dropped
    masks[2, 2:8] = True  # IoU 4/8 with the first, 5/7 with the second, which is gone: kept
    masks[3, :6] = True  # a copy of the first, of another class: kept
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6])
    found = mask_nms(mask_iou(masks), torch.tensor([0, 0, 0, 1]), scores, threshold=0.6)
    torch.testing.assert_close(found, torch.tensor([0.9, 0.0, 0.7, 0.6]))
