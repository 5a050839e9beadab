"""The full description of one denoiser's architecture; a checkpoint's config.json holds exactly this."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from invfusion.errors import ConfigError
from invfusion.schema import Config

Variant = Literal["invfusion", "palette", "unconditional"]
PreconditioningName = Literal["edm", "gaussian"]
Count = Annotated[int, Field(ge=0)]
Size = Annotated[int, Field(ge=1)]


class LevelConfig(Config):
    """One resolution of the hourglass.

    width: features per token; depth: layers on each way through the level; kernel: side of the neighbourhood that a
    token attends to, or "global".
    """

    width: Size
    depth: Size
    kernel: Annotated[int, Field(ge=1)] | Literal["global"] = "global"


class DenoiserConfig(Config):
    """Architecture of a `Denoiser`; the defaults shared by all presets are the paper's (appendix A.1, Table 5).

    variant: "invfusion" sees y and H in its blocks, "palette" only H_pinv y beside its input, "unconditional" neither.
    image_size: side of the square images that the model is trained on, or (height, width); it runs at any other size.
    levels: from the finest to the coarsest; each halves the token grid of the one before.
    invfusion_levels: indices of the levels whose blocks are InvFusion blocks, or "all" that can be (Table 8).
    n_classes: 0 for a model without classes.
    n_components: extra output images, the directions of an NPPC model.
    preconditioning: what surrounds the network: "edm", the paper's, for images N(0, sigma_data^2 I); "gaussian", the
    posterior of a Gaussian prior that was fitted to the training images.
    sees_sigma_y: whether a conditional network is told the measurements' noise level; with "gaussian" it always is.
    Raises `ConfigError` where sizes do not fit together.
    """

    variant: Variant = "invfusion"
    image_size: Size | tuple[Size, Size]
    channels: Size = 3
    patch_size: Size
    levels: tuple[LevelConfig, ...] = Field(min_length=1)
    invfusion_levels: Literal["all"] | tuple[Count, ...] = "all"
    head_dim: Annotated[int, Field(ge=8, multiple_of=8)] = 64
    feed_forward_factor: Size = 3
    mapping_width: Annotated[int, Field(ge=2, multiple_of=2)] = 256
    mapping_depth: Count = 2
    mapping_hidden: Size = 768
    n_classes: Count = 0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.05
    n_components: Count = 0
    sigma_data: Annotated[float, Field(gt=0)] = 0.5
    preconditioning: PreconditioningName = "edm"
    sees_sigma_y: bool = False

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        height, width = (self.image_size,) * 2 if isinstance(self.image_size, int) else self.image_size
        return self.channels, height, width

    @property
    def in_channels(self) -> int:
        """Channels that the network reads: the image, and the measurement as an image in the conditional variants."""
        return self.channels * (1 if self.variant == "unconditional" else 2)

    @property
    def knows_noise_level(self) -> bool:
        """Whether sigma_y reaches the network: its conditioning, and how far it inverts H."""
        return self.variant != "unconditional" and (self.sees_sigma_y or self.preconditioning == "gaussian")

    @property
    def out_channels(self) -> int:
        """Channels that the network writes: the image, then one image per component."""
        return self.channels * (1 + self.n_components)

    def patch_at(self, level: int) -> int:
        """Side in pixels of the image patch that one token of a level stands for."""
        return self.patch_size << level

    def trained_reach(self, level: int) -> int:
        """Tokens along the longer side of a training image: how far apart two tokens of a level have ever been."""
        return max(self.image_shape[1:]) // self.patch_at(level)

    @property
    def coarsest_patch(self) -> int:
        """Side in pixels of the coarsest tokens: images are padded to multiples of it."""
        return self.patch_at(len(self.levels) - 1)

    def stack_size(self, level: int) -> int:
        """How many feature images the features of a level form; 0 where they do not divide into images."""
        features = self.channels * self.patch_at(level) ** 2
        return self.levels[level].width // features if self.levels[level].width % features == 0 else 0

    def has_invfusion_blocks(self, level: int) -> bool:
        """Whether the layers of a level carry the feature degradation layer and joint attention."""
        if self.variant != "invfusion":
            return False
        return self.stack_size(level) > 0 if self.invfusion_levels == "all" else level in self.invfusion_levels

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        self._check_image_size()
        self._check_heads()
        self._check_invfusion_levels()
        return self

    def _check_image_size(self) -> None:
        coarsest = self.coarsest_patch
        _, height, width = self.image_shape
        if height % coarsest or width % coarsest:
            raise ConfigError(
                f"image_size {height}x{width} does not divide into the coarsest tokens of {coarsest}x{coarsest} pixels "
                f"(patch_size {self.patch_size}, {len(self.levels)} levels); choose multiples of {coarsest}"
            )

    def _check_heads(self) -> None:
        for index, level in enumerate(self.levels):
            if level.width % self.head_dim:
                raise ConfigError(
                    f"levels.{index}: width {level.width} is not a multiple of head_dim {self.head_dim}; change either"
                )

    def _check_invfusion_levels(self) -> None:
        if self.invfusion_levels == "all":
            return
        for index in self.invfusion_levels:
            if index >= len(self.levels):
                raise ConfigError(
                    f"invfusion_levels: there is no level {index}; levels are 0 to {len(self.levels) - 1}"
                )
            if self.stack_size(index) == 0:
                patch = self.patch_at(index)
                raise ConfigError(
                    f"invfusion_levels: level {index} cannot carry InvFusion blocks, since its width "
                    f"{self.levels[index].width} does not divide into images of {self.channels} channels and patches "
                    f"{patch}x{patch}; leave the level out, or make its width a multiple of {self.channels * patch**2}"
                )
