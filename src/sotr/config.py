"""The architecture of a SOTR network as one frozen value, and the named presets."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from sotr.errors import SOTRError as SOTRError

FPN_STRIDES = (4, 8, 16, 32, 64)
"""Strides of P2..P6 in input pixels."""

MASK_STRIDE = 4
"""Stride of the mask features in input pixels."""

INPUT_DIVISOR = 32
"""Input height and width must be multiples of this, the stride of the backbone's last stage."""

TRANSFORMERS = ["original", "pure_twin", "hybrid_twin", "none"]
"""What `SOTRConfig.transformer` may be; `sotr.network.transformer.add_layer` adds to it."""

GROUP_NORM_GROUPS = 32
"""Groups of every GroupNorm in the mask branch (section 3.2 cites Group Norm, whose default is 32)."""


VARIANTS = ("paper", "released")
"""What `SOTRConfig.variant` may be."""


WIDTH_DUPLICATIONS = ("exact", "wrapped", "none")
"""What `SOTRConfig.width_duplication` may be."""


_LIMITS = {
    "num_classes": 100_000,
    "width": 10_000,
    "depth": 1_000,
    "heads": 1_000,
    "mask_stage_channels": 10_000,
    "mask_channels": 10_000,
    "image_size": 100_000,
}
"""Largest values of settings: beyond these a file is damaged, and a network would fill any memory."""


@dataclass(frozen=True)
class SOTRConfig:
    """The architecture of SOTR; the defaults are the paper's baseline with a ResNet-50.

    Raises:
        SOTRError: on construction, if settings contradict one another; the message says the remedy.
    """

    variant: Literal["paper", "released"] = "paper"
    """"paper" is what the text and Figure 3 describe, "released" the network of the authors' checkpoints."""
    width_duplication: Literal["exact", "wrapped", "none"] = "exact"
    """In the released variant: "exact" feeds each map beside its own copy, as the authors' code does; "wrapped" stands
    in for the copy at the map's edges only, for half the work; "none" goes without. docs/results.md compares them."""
    num_classes: int = 80
    """Object classes M; there is no background class, a cell without object has all scores low."""
    backbone: str = "resnet50"
    """Any timm model with `features_only` support and feature maps at strides 4, 8, 16 and 32."""
    deformable_stages: tuple[int, ...] = ()
    """Stages 2..5 of a ResNet whose 3x3 convolutions are modulated deformable ones (Table 7: 3, 4 and 5)."""
    width: int = 256
    """Channels C of the FPN and of the transformer."""
    transformer: str = "hybrid_twin"
    """The layer of Figure 3 that is stacked (Table 2): original, pure_twin or hybrid_twin; one of your own, after
    `sotr.network.transformer.add_layer`; or none, and the heads read the FPN's features (Table 5)."""
    depth: int = 12
    """Transformer layers (Table 3: 6 or 12; section 4.1: 2 in the real-time model)."""
    heads: int = 8
    """Attention heads; must divide `width`."""
    mlp_ratio: float = 4.0
    """Hidden units of the transformer's MLP, as a multiple of `width`."""
    grids: tuple[int, ...] = (40, 36, 24, 16, 12)
    """Patches per side N for P2..P6: each level is resampled to N x N cells, the transformer's tokens."""
    scale_ranges: tuple[tuple[float, float], ...] = ((1, 96), (48, 192), (96, 384), (192, 768), (384, 2048))
    """Object sizes, as the square root of the box area in input pixels, that each level learns (inclusive)."""
    center_fraction: float = 0.2
    """Part of an object's box, around its center of mass, whose cells learn the object."""
    mask_transformer_levels: tuple[int, ...] = (5,)
    """Levels that the transformer replaces in the mask branch (Table 4): (), (5,) or (4, 5)."""
    mask_stage_channels: int = 128
    """Channels of the multi-level upsampling module's stages; a multiple of 32."""
    mask_channels: int = 256
    """Channels E of the unified mask feature; a multiple of 32."""
    kernel_size: int = 1
    """Side lambda of the convolution that makes a cell's mask: 1 or 3."""
    mask_feature_stride: int = 4
    """4 keeps the mask features at H/4 x W/4. 1 upsamples them to H x W first, the paper's order: another operation for
    kernel_size 3, and the same for 1, at 16 times the memory."""
    dynamic_kernels: bool = True
    """Predict each cell's convolution from its features, or learn it once for all images (Table 5)."""
    position_waves: int = 0
    """Waves of position F beside the mask features, the shortest with half a period of 8 pixels, each other twice as
    long: a mask then knows where its cell is, and starts as a disc around it. Everything repeats after 8 * 2^F pixels,
    so images should be smaller: with 8 waves, than 2,048. Not in the paper; 0 leaves them out."""
    image_size: int = 800
    """Shortest edge, in pixels, to which images are resized."""
    max_image_size: int = 1333
    """Cap of the longest edge, in pixels, after that resize."""
    intensity_percentiles: tuple[float, ...] = ()
    """Two percentiles of an image's values that become black and white before anything else, such as 1 and 99.8 for
    microscopy; none leaves the values as `sotr.data.load_image` gives them."""

    def __post_init__(self) -> None:
        for name, most in _LIMITS.items():
            if not 1 <= getattr(self, name) <= most:
                raise SOTRError(f"{name} is {getattr(self, name):.6g}; it must lie in 1..{most:,}")
        if self.width % self.heads:
            raise SOTRError(f"width {self.width} is not divisible by heads {self.heads}; choose a width that is")
        for name in ("mask_stage_channels", "mask_channels"):
            if getattr(self, name) % GROUP_NORM_GROUPS:
                raise SOTRError(
                    f"{name} is {getattr(self, name)}; GroupNorm needs a multiple of {GROUP_NORM_GROUPS} channels"
                )
        levels = len(FPN_STRIDES)
        if len(self.grids) != levels or not 1 <= min(self.grids) <= max(self.grids) <= 1000:
            raise SOTRError(f"grids is {self.grids[:8]}; give a number of cells, 1..1000, for each of P2..P6")
        if len(self.scale_ranges) != levels or any(len(pair) != 2 for pair in self.scale_ranges):
            raise SOTRError(f"scale_ranges is {self.scale_ranges}; give one (low, high) pair for each of P2..P6")
        if any(low > high for low, high in self.scale_ranges):
            raise SOTRError(f"scale_ranges is {self.scale_ranges}; in each pair low must not exceed high")
        if not 0 < self.center_fraction <= 1:
            raise SOTRError(f"center_fraction is {self.center_fraction}; it must lie in (0, 1]")
        if not 0 < self.mlp_ratio <= 100:
            raise SOTRError(f"mlp_ratio is {self.mlp_ratio}; it must be positive, and at most 100")
        if self.variant not in VARIANTS:
            raise SOTRError(f"there is no variant {self.variant!r}; choose one of {', '.join(VARIANTS)}")
        if self.variant == "released":
            paper_only = {
                "transformer": "hybrid_twin",
                "mask_transformer_levels": (5,),
                "mlp_ratio": 4.0,
                "mask_feature_stride": MASK_STRIDE,
            }
            for name, only in paper_only.items():
                if getattr(self, name) != only:
                    raise SOTRError(f"the released variant has no other {name} than {only!r}; use the paper variant")
        if self.width_duplication not in WIDTH_DUPLICATIONS:
            raise SOTRError(
                f"width_duplication is {self.width_duplication!r}; choose one of {', '.join(WIDTH_DUPLICATIONS)}"
            )
        if self.variant == "paper" and self.width_duplication != "exact":
            raise SOTRError(
                f"width_duplication is {self.width_duplication!r}, but only the released variant duplicates the width; "
                "leave it out, or set variant to 'released'"
            )
        if not set(self.deformable_stages) <= {2, 3, 4, 5}:
            raise SOTRError(f"deformable_stages is {self.deformable_stages}; choose among 2, 3, 4 and 5")
        if self.transformer not in TRANSFORMERS:
            raise SOTRError(
                f"there is no transformer {self.transformer!r}; choose one of {', '.join(TRANSFORMERS)}, or add one "
                "of your own with sotr.network.transformer.add_layer before"
            )
        if self.mask_transformer_levels not in ((), (5,), (4, 5)):
            raise SOTRError(f"mask_transformer_levels is {self.mask_transformer_levels}; choose (), (5,) or (4, 5)")
        if self.transformer == "none" and self.mask_transformer_levels:
            raise SOTRError(
                "without transformer no level of the mask branch can come from it; set mask_transformer_levels to ()"
            )
        if self.mask_stage_channels == GROUP_NORM_GROUPS and self.max_image_size <= INPUT_DIVISOR:
            raise SOTRError(
                f"max_image_size is {self.max_image_size}, which leaves one cell at stride 32, and mask_stage_channels "
                f"{self.mask_stage_channels} one channel per group: nothing to normalize; raise either"
            )
        if self.mask_feature_stride not in (1, MASK_STRIDE):
            raise SOTRError(f"mask_feature_stride is {self.mask_feature_stride}; choose {MASK_STRIDE} or 1")
        if self.kernel_size not in (1, 3):
            raise SOTRError(f"kernel_size is {self.kernel_size}; choose 1 or 3")
        if not 0 <= self.position_waves <= 10:
            raise SOTRError(f"position_waves is {self.position_waves}; it must lie in 0..10")
        if self.position_waves and (self.kernel_size != 1 or not self.dynamic_kernels or self.variant != "paper"):
            raise SOTRError(
                "position_waves need kernel_size 1, dynamic kernels and the paper variant; set position_waves to 0, or "
                "change those"
            )
        if (ends := self.intensity_percentiles) and not (len(ends) == 2 and 0 <= ends[0] < ends[1] <= 100):
            raise SOTRError(f"intensity_percentiles is {ends[:8]}; give two in 0..100, the smaller first, or none")
        if self.max_image_size < self.image_size:
            raise SOTRError(
                f"max_image_size {self.max_image_size} is smaller than image_size {self.image_size}; raise the former"
            )

    @property
    def num_cells(self) -> int:
        """K, the cells over all levels."""
        return sum(grid * grid for grid in self.grids)

    @property
    def feature_channels(self) -> int:
        """Channels that a cell's convolution reads: E, and those of the waves of position with the ones."""
        return self.mask_channels + (4 * self.position_waves + 1 if self.position_waves else 0)

    @property
    def kernel_parameters(self) -> int:
        """D = lambda^2 E, the parameters of the convolution that makes a cell's mask (section 3.2)."""
        return self.kernel_size**2 * self.feature_channels

    @classmethod
    def preset(cls, name: str, num_classes: int = 80) -> "SOTRConfig":
        """A named architecture for `num_classes` classes.

        Raises:
            SOTRError: if there is no such preset; the message lists those there are.
        """
        if name not in _PRESETS:
            raise SOTRError(f"there is no preset {name!r}; choose one of {', '.join(PRESETS)}")
        return replace(_PRESETS[name], num_classes=num_classes)

    def to_dict(self) -> dict[str, Any]:
        """Plain values only, ready for JSON or YAML; `from_dict` reads them back."""
        plain = asdict(self)
        plain["grids"] = list(self.grids)
        plain["mask_transformer_levels"] = list(self.mask_transformer_levels)
        plain["deformable_stages"] = list(self.deformable_stages)
        plain["intensity_percentiles"] = list(self.intensity_percentiles)
        plain["scale_ranges"] = [list(pair) for pair in self.scale_ranges]
        return plain

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "SOTRConfig":
        """The configuration that `to_dict` described; absent keys keep their defaults.

        Raises:
            SOTRError: for a key that does not exist, a value of the wrong type, or contradictory settings.
        """
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise SOTRError(f"unknown setting {', '.join(unknown)}; the settings are {', '.join(sorted(known))}")
        defaults = cls()
        checked: dict[str, Any] = {}
        for name, value in values.items():
            default = getattr(defaults, name)
            try:
                if name in ("grids", "mask_transformer_levels", "deformable_stages"):
                    checked[name] = tuple(int(number) for number in value)
                elif name == "intensity_percentiles":
                    checked[name] = tuple(float(number) for number in value)
                elif name == "scale_ranges":
                    checked[name] = tuple((float(low), float(high)) for low, high in value)
                else:
                    checked[name] = type(default)(value)
                    # bool("no") and int(2.5) do not fail, but do not mean what was written either.
                    if isinstance(value, bool) != isinstance(default, bool) or checked[name] != value:
                        raise TypeError
            except (TypeError, ValueError, OverflowError):
                raise SOTRError(f"{name} is {value!r}; it must look like {default!r}") from None
        return cls(**checked)


_PRESETS = {
    "sotr-r50": SOTRConfig(),
    "sotr-r101": SOTRConfig(backbone="resnet101"),
    "sotr-r101-dcn": SOTRConfig(backbone="resnet101", deformable_stages=(3, 4, 5)),
    "sotr-rt-r50": SOTRConfig(depth=2, image_size=736, max_image_size=1226),
    # For CPUs and small data: half the paper's image, so half its scale ranges and fewer cells.
    "sotr-nano": SOTRConfig(
        backbone="resnet10t",
        width=96,
        depth=2,
        heads=4,
        mlp_ratio=2.0,
        grids=(40, 24, 16, 12, 8),
        scale_ranges=((1, 48), (24, 96), (48, 192), (96, 384), (192, 2048)),
        mask_stage_channels=64,
        mask_channels=128,
        position_waves=8,
        image_size=384,
        max_image_size=640,
    ),
}

PRESETS = tuple(_PRESETS)
"""Names that `SOTRConfig.preset` knows."""
