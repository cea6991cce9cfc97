"""Weights for the backbone alone, from ImageNet or wherever the user has them: read strictly, never executed."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from urllib.parse import urlsplit

import timm
import torch
from huggingface_hub import constants
from torch import Tensor

from sotr.config import SOTRConfig
from sotr.errors import SOTRError, first_line
from sotr.model.tensors import read_state_dict
from sotr.network.backbone import Backbone

IMAGENET = "imagenet"
"""Fetches the weights that timm publishes for the architecture."""


def backbone_weights(config: SOTRConfig, source: str) -> tuple[dict[str, Tensor], str]:
    """Weights for the backbone of a `SOTR`, by their names in its state dict, and where they come from, in words.

    Args:
        config: the architecture.
        source: "imagenet", or a .safetensors or PyTorch file of a timm model of the same architecture, with or without
            its classifier.

    Raises:
        SOTRError: they cannot be had or read, or do not fit; every tensor of the backbone must be there with its shape,
            and none that the architecture does not have.
    """
    name = config.backbone
    if source == IMAGENET:
        tensors, origin = _published(name), f"timm's weights of {name}"
    else:
        tensors, origin = read_state_dict(Path(source)), f"the weights in {source}"
    # timm joins the names of some architectures' stages with "_" where the whole model has ".".
    given = {_plain(key): value for key, value in tensors.items()}
    with torch.device("meta"):
        expected = Backbone(name, config.deformable_stages).body.state_dict()
        whole = {_plain(key) for key in timm.create_model(name, pretrained=False).state_dict()}
    chosen, missing, misshapen = {}, [], []
    for key, tensor in expected.items():
        value = given.get(_plain(key))
        if value is None:
            # What a classifier never had: the batches that a norm has counted, the offsets of deformable convolutions.
            if not key.endswith("num_batches_tracked") and ".offset." not in key:
                missing.append(key)
        elif value.shape != tensor.shape:
            misshapen.append(f"{key} {tuple(value.shape)} instead of {tuple(tensor.shape)}")
        else:
            chosen[f"backbone.body.{key}"] = value.to(tensor.dtype)
    unknown = sorted(set(given) - whole - {_plain(key) for key in expected})
    problems = [
        f"{len(names)} {kind}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
        for kind, names in (("missing", missing), ("of another shape", misshapen), ("unknown", unknown))
        if names
    ]
    if problems:
        raise SOTRError(
            f"{origin} do not fit the backbone {name}: {'; '.join(problems)}; give weights of this timm architecture"
        )
    return chosen, origin


def reachable() -> bool:
    """Whether the Hugging Face hub, or a proxy to it, has an address here; asking takes no second."""
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True
    try:
        return bool(socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, 443))
    except OSError:
        return False


def _plain(key: str) -> str:
    return key.replace(".", "_")


@contextmanager
def only_cached() -> Iterator[None]:
    """In the block the hub's library does not use the network."""
    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _published(name: str) -> dict[str, Tensor]:
    try:
        # Otherwise the hub's library would try for a minute before it looks into its cache.
        with only_cached() if not reachable() else nullcontext():
            weights: dict[str, Tensor] = timm.create_model(name, pretrained=True).state_dict()
    except Exception as error:  # no such weights, no network, no space: each library below has errors of its own
        reason = first_line(error)
        raise SOTRError(
            f"the ImageNet weights of {name} could not be had ({reason}); when offline, give a file that was "
            "downloaded elsewhere with --backbone-weights FILE, or none to start from random weights"
        ) from None
    return weights
