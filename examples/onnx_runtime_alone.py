"""Use an exported model with ONNX Runtime and nothing of this package, as a service in another language would.

sotr export nuclei
python examples/onnx_runtime_alone.py nuclei.onnx cells.png masks.png
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image

model, picture, drawing = sys.argv[1:]
session = onnxruntime.InferenceSession(model)
about = json.loads(session.get_modelmeta().custom_metadata_map["sotr"])

# Shortest edge to image_size, longest at most max_image_size; normalised; zeros up to multiples of 32.
image = Image.open(picture).convert("RGB")
ratio = min(about["image_size"] / min(image.size), about["max_image_size"] / max(image.size))
width, height = (max(1, round(side * ratio)) for side in image.size)
pixels = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR), np.float32) / 255
pixels = (pixels - np.float32(about["mean"])) / np.float32(about["std"])
images = np.zeros((1, 3, -(-height // 32) * 32, -(-width // 32) * 32), np.float32)
images[0, :, :height, :width] = pixels.transpose(2, 0, 1)

scores, labels, mask_logits, count = session.run(None, {"images": images})
for score, label in zip(scores[0, : count[0]], labels[0, : count[0]], strict=True):
    print(f"{about['class_names'][label]} {score:.2f}")

# Each mask's number where its probability is over 0.5, brought to the picture's size.
numbers = np.zeros(mask_logits.shape[2:], np.uint8)
for i in reversed(range(count[0])):
    numbers[mask_logits[0, i] > 0] = i % 255 + 1
whole = Image.fromarray(numbers).resize((images.shape[3], images.shape[2]), Image.Resampling.NEAREST)
whole.crop((0, 0, width, height)).resize(image.size, Image.Resampling.NEAREST).save(drawing)
