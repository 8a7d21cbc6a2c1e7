"""A vision Transformer (ViT and kin) with its heads.

Notable:
- The defaults are ViT's blocks (Dosovitskiy et al. 2021, https://arxiv.org/abs/2010.11929).
- Another image size than the model's is taken with ``interpolate_pos_encoding=True``.
- The backbone gives feature maps (B, D, rows, columns) of any block, for segmentation and detection.

Shape suffixes: B batch  C channels  N patches  T = N + 1 tokens  D hidden size  L labels.
"""

from typing import ClassVar

import torch
from torch import nn
from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForMaskedImageModeling,
)
from transformers import initialization as init
from transformers.backbone_utils import BackboneConfigMixin, BackboneMixin
from transformers.modeling_outputs import (
    BackboneOutput,
    BaseModelOutputWithPooling,
    ImageClassifierOutput,
    MaskedImageModelingOutput,
)
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .base import HlrConfig, HlrPreTrainedModel, check_shape, classification_loss
from .layers import Attention, Block, LearnedPositions, Stack, additive_positions


class HlrVisionConfig(BackboneConfigMixin, HlrConfig):
    """A vision Transformer; the defaults are ViT-small at 224.

    Args:
        image_size: Height and width, pixels.
        patch_size: Height and width of a patch, pixels.
        num_channels: 3 = colour, 1 = grey.
        use_pooler: tanh(W x_[CLS]) as ``pooler_output``.
        out_features: Blocks whose feature maps the backbone returns, of ``stem``, ``stage1``, ...
        out_indices: The same by number; 0 = ``stem``.
    """

    model_type = "hlr_vision"
    PRESETS: ClassVar[dict[str, dict]] = {
        "tiny": {
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": 32,
            "patch_size": 8,
        },
        "small": {},
        "base": {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072},
    }

    hidden_size: int = 384
    num_hidden_layers: int = 12
    num_attention_heads: int = 6
    norm_eps: float = 1e-12
    image_size: int = 224
    patch_size: int = 16
    num_channels: int = 3
    use_pooler: bool = False
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs):
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size={self.image_size} is no multiple of patch_size={self.patch_size}; "
                "resize the images or change the patch size"
            )
        self.max_position_embeddings = self.num_patches + 1
        self.stage_names = ["stem", *(f"stage{i + 1}" for i in range(self.num_hidden_layers))]
        self.set_output_features_output_indices(
            out_features=kwargs.pop("out_features", None), out_indices=kwargs.pop("out_indices", None)
        )
        super().__post_init__(**kwargs)

    @property
    def num_patches(self) -> int:
        """N, the patches of an image of the model's own size."""
        return (self.image_size // self.patch_size) ** 2


class HlrVisionPreTrainedModel(HlrPreTrainedModel):
    """The vision Transformer's class attributes."""

    config: HlrVisionConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _input_embed_layer = "patches"
    _can_record_outputs: ClassVar[dict] = {"hidden_states": Block, "attentions": Attention}

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, PatchEmbeddings):
            init.trunc_normal_(module.cls_token, std=self.config.initializer_range)
            if module.mask_token is not None:
                init.zeros_(module.mask_token)


class PatchEmbeddings(nn.Module):
    """[CLS] and one vector W patch + b a patch, plus positions (Dosovitskiy et al. 2021, eq. 1)."""

    def __init__(self, config, use_mask_token: bool) -> None:
        super().__init__()
        self.config = config
        size = config.patch_size
        self.patches = nn.Conv2d(config.num_channels, config.hidden_size, kernel_size=size, stride=size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size)) if use_mask_token else None
        self.positions = additive_positions(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        pixel_values: torch.Tensor,
        bool_masked_pos: torch.Tensor | None = None,
        interpolate: bool = False,
    ) -> torch.Tensor:
        """Returns (B, T, D) for pixels (B, C, height, width).

        Args:
            pixel_values: The images.
            bool_masked_pos: (B, N), True where the patch is replaced by the mask token.
            interpolate: Stretch the positions to another image size than the model's.

        Raises:
            ValueError: another number of channels or another size without ``interpolate``.
        """
        self._check(pixel_values, interpolate)
        grid_BDhw = self.patches(pixel_values.to(self.patches.weight.dtype))
        x_BND = grid_BDhw.flatten(2).transpose(1, 2)
        if bool_masked_pos is not None:
            check_shape("bool_masked_pos", bool_masked_pos, x_BND.shape[:2])
            x_BND = torch.where(bool_masked_pos.bool()[..., None], self.mask_token, x_BND)
        x_BTD = torch.cat((self.cls_token.expand(x_BND.shape[0], -1, -1), x_BND), dim=1)
        if self.positions is not None:
            x_BTD = x_BTD + self._position_vectors(grid_BDhw.shape[2:]).to(x_BTD.dtype)
        return self.dropout(x_BTD)

    def _check(self, pixel_values, interpolate) -> None:
        config, size = self.config, self.config.patch_size
        if pixel_values.ndim != 4 or pixel_values.shape[1] != config.num_channels:
            raise ValueError(
                f"pixel_values have shape {tuple(pixel_values.shape)}; they need (batch, channels, height, "
                f"width) with {config.num_channels} channels"
            )
        height, width = pixel_values.shape[2:]
        if interpolate and (height % size or width % size):
            raise ValueError(f"images of {height} x {width}; both need to be multiples of patch_size={size}")
        if not interpolate and (height, width) != (config.image_size, config.image_size):
            raise ValueError(
                f"images of {height} x {width}, but image_size={config.image_size}; "
                "resize them or pass interpolate_pos_encoding=True"
            )

    def _position_vectors(self, grid) -> torch.Tensor:
        """Position vectors (1, T, D) of [CLS] and a grid of patches, row by row."""
        rows, columns = grid
        side = self.config.image_size // self.config.patch_size
        if (rows, columns) == (side, side) or not isinstance(self.positions, LearnedPositions):
            return self.positions(torch.arange(rows * columns + 1, device=self.cls_token.device)[None])
        table_1TD = self.positions.embedding.weight[None]
        own_1Dhw = table_1TD[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2)
        new_1Dhw = nn.functional.interpolate(
            own_1Dhw, size=(rows, columns), mode="bicubic", align_corners=False
        )
        return torch.cat((table_1TD[:, :1], new_1Dhw.flatten(2).transpose(1, 2)), dim=1)


class HlrVisionModel(HlrVisionPreTrainedModel):
    """Pixels (B, C, height, width) -> hidden states (B, T, D), the first of them [CLS]."""

    def __init__(self, config: HlrVisionConfig, use_mask_token: bool = False):
        super().__init__(config)
        self.embeddings = PatchEmbeddings(config, use_mask_token)
        self.stack = Stack(config, is_causal=False)
        self.pooler = nn.Linear(config.hidden_size, config.hidden_size) if config.use_pooler else None
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.Tensor,
        bool_masked_pos: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs,
    ) -> BaseModelOutputWithPooling:
        """Returns hidden states (B, T, D) and the (pooled) [CLS] (B, D).

        Raises:
            ValueError: images of another shape than the model's.
        """
        x_BTD = self.embeddings(pixel_values, bool_masked_pos, interpolate_pos_encoding)
        position_ids = torch.arange(x_BTD.shape[1], device=x_BTD.device)[None]
        x_BTD = self.stack(x_BTD, None, position_ids, **kwargs)
        pooled_BD = x_BTD[:, 0] if self.pooler is None else self.pooler(x_BTD[:, 0]).tanh()
        return BaseModelOutputWithPooling(last_hidden_state=x_BTD, pooler_output=pooled_BD)


class HlrVisionForImageClassification(HlrVisionPreTrainedModel):
    """One label, several labels or numbers an image: logits (B, L)."""

    def __init__(self, config: HlrVisionConfig):
        super().__init__(config)
        self.model = HlrVisionModel(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.loss_function = classification_loss
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs,
    ) -> ImageClassifierOutput:
        """Returns logits (B, L) and, with labels, the loss of ``base.classification_loss``."""
        outputs = self.model(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, **kwargs)
        logits = self.classifier(outputs.pooler_output)
        loss = None if labels is None else self.loss_function(labels, logits, self.config, **kwargs)
        return ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class HlrVisionForMaskedImageModeling(HlrVisionPreTrainedModel):
    """Masked patches back to pixels (SimMIM, Xie et al. 2022, https://arxiv.org/abs/2111.09886)."""

    def __init__(self, config: HlrVisionConfig):
        super().__init__(config)
        self.model = HlrVisionModel(config, use_mask_token=True)
        self.to_pixels = nn.Linear(config.hidden_size, config.num_channels * config.patch_size**2)
        self.loss_function = masked_pixel_loss
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        bool_masked_pos: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs,
    ) -> MaskedImageModelingOutput:
        """Returns pixels (B, C, height, width) and, with masked patches (B, N), the mean absolute error."""
        outputs = self.model(pixel_values, bool_masked_pos, interpolate_pos_encoding, **kwargs)
        size, rows = self.config.patch_size, pixel_values.shape[2] // self.config.patch_size
        patches = self.to_pixels(outputs.last_hidden_state[:, 1:]).unflatten(-1, (-1, size, size))
        # (B, rows, columns, C, size, size) -> (B, C, rows, size, columns, size) -> pixels
        image = patches.unflatten(1, (rows, -1)).permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
        loss = None
        if bool_masked_pos is not None:
            loss = self.loss_function(image, pixel_values, bool_masked_pos, size, **kwargs)
        return MaskedImageModelingOutput(
            loss=loss,
            reconstruction=image,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


def masked_pixel_loss(image, pixel_values, bool_masked_pos, patch_size, num_items_in_batch=None, **kwargs):
    """Returns the mean absolute error over the pixels of masked patches (Xie et al. 2022, eq. 1).

    Args:
        image: Predicted pixels (B, C, height, width).
        pixel_values: True ones.
        bool_masked_pos: (B, N).
        patch_size: Pixels a side.
        num_items_in_batch: Masked patches of all micro-batches of the step; ``None`` = of this one.
    """
    rows = image.shape[2] // patch_size
    mask_Bhw = bool_masked_pos.view(image.shape[0], rows, -1).to(image.dtype)
    mask_B1HW = mask_Bhw.repeat_interleave(patch_size, 1).repeat_interleave(patch_size, 2)[:, None]
    total = ((image - pixel_values.to(image.dtype)).abs() * mask_B1HW).sum()
    patches = mask_Bhw.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
    return total / (patches * image.shape[1] * patch_size**2)


class HlrVisionBackbone(BackboneMixin, HlrVisionPreTrainedModel):
    """Feature maps (B, D, rows, columns) of the blocks named in ``config.out_features``."""

    def __init__(self, config: HlrVisionConfig):
        super().__init__(config)
        self.num_features = [config.hidden_size] * (config.num_hidden_layers + 1)
        self.model = HlrVisionModel(config)
        self.post_init()

    @can_return_tuple
    def forward(self, pixel_values: torch.Tensor, **kwargs) -> BackboneOutput:
        """Returns the normed feature maps, in the order of the blocks."""
        wanted = kwargs.pop("output_hidden_states", False)
        kwargs.setdefault("interpolate_pos_encoding", True)
        outputs = self.model(pixel_values, output_hidden_states=True, **kwargs)
        grid = [side // self.config.patch_size for side in pixel_values.shape[2:]]
        norm = self.model.stack.final_norm or nn.Identity()
        maps = tuple(
            norm(x_BTD)[:, 1:].transpose(1, 2).unflatten(2, grid).contiguous()
            for stage, x_BTD in zip(self.stage_names, outputs.hidden_states, strict=True)
            if stage in self.out_features
        )
        hidden_states = outputs.hidden_states if wanted else None
        return BackboneOutput(feature_maps=maps, hidden_states=hidden_states, attentions=outputs.attentions)


AutoConfig.register("hlr_vision", HlrVisionConfig, exist_ok=True)
AutoModel.register(HlrVisionConfig, HlrVisionModel, exist_ok=True)
AutoModelForImageClassification.register(HlrVisionConfig, HlrVisionForImageClassification, exist_ok=True)
AutoModelForMaskedImageModeling.register(HlrVisionConfig, HlrVisionForMaskedImageModeling, exist_ok=True)
AutoBackbone.register(HlrVisionConfig, HlrVisionBackbone, exist_ok=True)
