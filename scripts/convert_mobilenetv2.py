"""Turn torchvision's MobileNetV2 with folded batch norms (an NPZ of conv_N_weight, conv_N_bias) into weights for
`sotr train --backbone-weights`: a safetensors file of timm's mobilenetv2_100.

    python scripts/convert_mobilenetv2.py mobilenetv2_torchvision_fused.npz mobilenetv2_100.safetensors PICTURES

The file's convolutions have swallowed their batch norms, so the statistics of these are measured again on some
pictures: the network's output does not change by it, and training can go on with batch norms that mean something.
"""

import argparse
import re
from pathlib import Path

import numpy as np
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sotr.data.images import load_image
from sotr.data.transforms import preprocess

SIZE, MOST = 256, 64


def convert(npz: Path) -> nn.Module:
    """timm's mobilenetv2_100 that computes what the file's network computes."""
    content = np.load(npz, allow_pickle=False)
    numbers = sorted(int(match[1]) for name in content.files if (match := re.fullmatch(r"conv_(\d+)_weight", name)))
    model = timm.create_model("mobilenetv2_100", pretrained=False).eval()
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    if not len(numbers) == len(convolutions) == len(norms):
        raise SystemExit(f"{npz} has {len(numbers)} convolutions, mobilenetv2_100 {len(convolutions)}")
    with torch.no_grad():
        for number, convolution, norm in zip(numbers, convolutions, norms, strict=True):
            weight = torch.from_numpy(content[f"conv_{number}_weight"])
            if weight.shape != convolution.weight.shape:
                raise SystemExit(f"{npz}: conv_{number}_weight is {tuple(weight.shape)}")
            convolution.weight.copy_(weight)
            norm.running_mean.zero_()
            norm.running_var.fill_(1 - norm.eps)
            norm.weight.fill_(1.0)
            norm.bias.copy_(torch.from_numpy(content[f"conv_{number}_bias"]))
    return model


@torch.no_grad()
def measure(model: nn.Module, pictures: list[Tensor]) -> None:
    """Give the batch norms the statistics of the pictures without changing what the network computes."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    sums = {norm: torch.zeros(3, norm.num_features, dtype=torch.float64) for norm in norms}

    def add(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        values = inputs[0].double()
        size = torch.full((values.shape[1],), float(values[:, 0].numel()), dtype=torch.float64)
        sums[norm] += torch.stack([size, values.sum((0, 2, 3)), values.square().sum((0, 2, 3))])

    handles = [norm.register_forward_pre_hook(add) for norm in norms]
    for picture in pictures:
        model.forward_features(picture[None])
    for handle in handles:
        handle.remove()
    for norm in norms:
        count, total, squares = sums[norm]
        mean = total / count
        variance = (squares / count - mean.square()).clamp(min=1e-6)
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
        norm.weight.copy_((variance + norm.eps).sqrt())
        norm.bias.add_(mean)


def main() -> None:
    """Read the arguments, convert, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("npz", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("pictures", type=Path, help=f"folder of pictures, of which {MOST} are used")
    arguments = parser.parse_args()
    model = convert(arguments.npz)
    files = sorted(path for path in arguments.pictures.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    pictures = [preprocess(load_image(path), SIZE, 2 * SIZE) for path in files[:: max(1, len(files) // MOST)][:MOST]]
    with torch.no_grad():
        before = model.forward_features(pictures[0][None])
        measure(model, pictures)
        change = (model.forward_features(pictures[0][None]) - before).abs().max() / before.abs().max()
    weights = {name: value for name, value in model.state_dict().items() if not name.startswith("classifier.")}
    save_file(weights, arguments.out)
    print(f"{arguments.out}: {len(weights)} tensors; largest change of the features by rounding {change:.1e}")


if __name__ == "__main__":
    main()
