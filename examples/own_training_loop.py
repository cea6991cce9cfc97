"""Train a network in plain PyTorch: the parts of this package without its trainer, for those who have their own.

    python examples/own_training_loop.py [STEPS]

It learns two squares on one picture by heart, which takes a few dozen steps; the losses are printed.
"""

import sys
from dataclasses import replace

import torch

from sotr import SOTRConfig, build_network
from sotr.learning import LossOptions, Targets, assign, sotr_losses

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 30
torch.manual_seed(0)

config = replace(SOTRConfig.preset("sotr-nano", num_classes=2), depth=1, grids=(16, 12, 8, 6, 4))
network = build_network(config)
optimizer = torch.optim.AdamW(network.parameters(), lr=5e-4)

# One picture of 64 x 96 with two objects. Masks are coverages, 0 to 255, at a quarter of the picture's size.
boxes = torch.tensor([[8.0, 16.0, 40.0, 48.0], [56.0, 24.0, 80.0, 48.0]])
images = torch.full((1, 3, 64, 96), -1.0)
masks = torch.zeros(2, 16, 24, dtype=torch.uint8)
for number, (left, top, right, bottom) in enumerate(boxes.int().tolist()):
    images[0, number, top:bottom, left:right] = 2.0
    masks[number, top // 4 : bottom // 4, left // 4 : right // 4] = 255
targets = Targets(torch.tensor([0, 1]), boxes, (boxes[:, :2] + boxes[:, 2:]) / 2, masks)
assignment = assign([targets], config, (64, 96))

for step in range(STEPS):
    losses = sotr_losses(network(images), [targets], assignment, LossOptions())
    optimizer.zero_grad()
    sum(losses.values()).backward()
    optimizer.step()
    if step % 5 == 0 or step == STEPS - 1:
        print(step, {name: round(float(loss.detach()), 3) for name, loss in losses.items()})
