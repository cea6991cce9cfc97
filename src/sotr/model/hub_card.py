"""README.md of a published model: the hub's metadata, and what is known of the model."""

from typing import TYPE_CHECKING

from huggingface_hub import ModelCardData

if TYPE_CHECKING:
    from sotr.model.segmenter import Segmenter

NAMED_CLASSES = 40
"""Classes that the card names; more are counted."""


def hub_card(segmenter: "Segmenter") -> str:
    """Markdown with YAML metadata on top: the model's own card if it has one, else one made of its settings."""
    text = segmenter.card or _describe(segmenter)
    if text.startswith("---\n"):
        return text
    data = ModelCardData(library_name="sotr", pipeline_tag="image-segmentation", tags=["instance-segmentation", "sotr"])
    return f"---\n{data.to_yaml()}\n---\n\n{text}"


def _describe(segmenter: "Segmenter") -> str:
    config, options = segmenter.config, segmenter.decode_options
    names = ", ".join(segmenter.class_names[:NAMED_CLASSES])
    if more := len(segmenter.class_names) - NAMED_CLASSES:
        names += f" and {more} more" if more > 0 else ""
    parameters = sum(tensor.numel() for tensor in segmenter.network.parameters()) / 1e6
    return f"""# {segmenter.name}

Finds objects in images and draws the mask of each: {names}.

```python
import sotr

objects = sotr.load("ORGANISATION/NAME").predict("picture.png")
```

Or `sotr predict picture.png --model ORGANISATION/NAME`.

| | |
|---|---|
| network | SOTR ({config.variant} variant), {config.backbone}, depth {config.depth}, {parameters:.1f} M parameters |
| images | shortest edge {config.image_size} px, longest at most {config.max_image_size} px |
| objects | at most {options.max_objects} an image, with scores over {options.score_threshold:g} |

Not stated: data, license, accuracy and limits. Who publishes the model should add them here.
"""
