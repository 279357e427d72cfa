"""Config of a ViT, and the questions that a config of any family answers.

Nobody outside models/ and interop/ asks which family a backbone is of:
convnext.ConvNeXtConfig answers the same questions.
"""

from collections.abc import Iterator
import dataclasses
from typing import Any, ClassVar, Literal

import jax.numpy as jnp
import numpy as np

from dinojax.core import fields
from dinojax.kernels import attention
from dinojax.models import positions

# Every parameter by its path, and by which rule its rate is scaled.
LR_KINDS = (
    (r'cls_token|mask_token|pos_embed|registers', 'token'),
    (r'patch_embed/(kernel|bias)', 'patch_embed'),
    (r'blocks/(norm[12]/(scale|bias)|ls[12]/gamma'
     r'|attn/(qkv|proj)/(kernel|bias)'
     r'|mlp/(fc[12]|w12|w[123])/(kernel|bias))', 'block'),
    (r'((local_)?cls_)?norm/(scale|bias)', 'plain'))


@dataclasses.dataclass(frozen=True)
class ViTConfig:
  """Everything that shapes a ViT; sizes by name are in `zoo`."""

  FAMILY: ClassVar[str] = 'vit'

  embed_dim: fields.Positive  # Width of tokens.
  depth: fields.Positive  # Blocks.
  num_heads: fields.Positive  # Heads of attention.
  patch_px: fields.Positive  # Side of a patch, in pixels.
  # Feed-forward network of a block; the last two have a gate.
  ffn: Literal['mlp', 'swiglu', 'geglu'] = 'mlp'
  ffn_hidden: fields.Natural = 0  # Its hidden width; 0: 4 × embed_dim.
  num_channels: fields.Positive = 3  # Channels of an image.
  num_registers: fields.Natural = 0  # Register tokens.
  position: Literal['learned', 'rope'] = 'learned'  # Kind of positions.
  image_px: fields.Positive = 224  # Side that learned positions are for.
  interpolate_offset: fields.NonNegative = 0.1  # Added to resampled grids.
  interpolate_antialias: bool = False  # Smooths positions on smaller grids.
  norm: Literal['layernorm', 'rmsnorm'] = 'layernorm'  # Kind of norms.
  norm_epsilon: fields.NonNegative = 1e-6  # Added to the variance.
  qkv_bias: bool = True  # Bias of queries, keys and values.
  proj_bias: bool = True  # Bias after attention.
  ffn_bias: bool = True  # Bias of the feed-forward network.
  mask_k_bias: bool = False  # Holds the bias of keys at zero.
  layerscale: fields.NonNegative | None = 1e-5  # LayerScale's start; None: no.
  drop_path_rate: fields.BelowOne = 0.0  # Share of rows that skip a block.
  drop_path_uniform: bool = True  # False: a ramp from 0 to the rate.
  untie_cls_and_patch_norms: bool = False  # Two last norms.
  untie_global_and_local_cls_norm: bool = False  # A CLS norm of local crops.
  rope_base: fields.Above0 | None = 100.0  # Base of periods; None: two bounds.
  rope_min_period: fields.Above0 | None = None  # Shortest period of RoPE.
  rope_max_period: fields.Above0 | None = None  # Longest period of RoPE.
  rope_periods: tuple[fields.Above0, ...] | None = None  # Periods of a file.
  rope_normalize: Literal['separate', 'max', 'min'] = 'separate'  # Unit side.
  rope_shift: fields.NonNegative | None = None  # Greatest random shift.
  rope_jitter: fields.Above0 | None = None  # Greatest factor of one axis.
  rope_rescale: fields.Above0 | None = None  # Greatest factor of both axes.
  rope_dtype: Literal['float32', 'bfloat16'] = 'float32'  # Precision of RoPE.
  token_std: fields.NonNegative = 0.02  # CLS and registers; DINOv2: 1e-6.
  dtype: str = 'float32'  # Activations: auto, float32 or bfloat16.
  remat: str = fields.free('dots')  # Values made again, see layers.REMAT.
  packing: Literal['auto', 'tuple', 'stream'] = 'tuple'  # Layout of crops.
  attention: str = 'xla'  # Kernel: auto, or one of kernels.attention.

  @property
  def compute_dtype(self):
    """The dtype of activations."""
    return jnp.dtype(self.dtype)

  @property
  def token_px(self) -> int:
    """Side of the square of pixels that a patch token stands for."""
    return self.patch_px

  @property
  def periods(self) -> np.ndarray:
    """[d/4] periods of RoPE, float32."""
    if self.rope_periods is not None:
      return np.float32(self.rope_periods)
    return positions.rope_periods(
        self.embed_dim // self.num_heads, base=self.rope_base,
        min_period=self.rope_min_period, max_period=self.rope_max_period,
        dtype=self.rope_dtype)

  def grid(self, image_px: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of patches of an image."""
    return image_px[0] // self.patch_px, image_px[1] // self.patch_px

  @property
  def layer_dims(self) -> tuple[int, ...]:
    """Width of the features of every layer."""
    return (self.embed_dim,) * self.depth

  def layer_grid(self, image_px: tuple[int, int],
                 layer: int) -> tuple[int, int]:
    """Rows and columns of the patches of a layer."""
    del layer
    return self.grid(image_px)

  @property
  def side_px(self) -> int:
    """Sides of images that are multiples of this lose no pixel."""
    return self.patch_px

  @property
  def unit_px(self) -> int:
    """Sides of images must be multiples of this."""
    return self.patch_px

  @property
  def has_attention(self) -> bool:
    """True if there are attention maps, and a kernel to choose."""
    return True

  @property
  def learned_px(self) -> int | None:
    """Side of the images that positions were learned at; None: of any."""
    return self.image_px if self.position == 'learned' else None

  @property
  def hides_patches(self) -> bool:
    """True if a patch can be hidden: there is a mask token."""
    return True

  @property
  def slows_layers(self) -> bool:
    """True if layer-wise decay gives each layer its own rate."""
    return True

  def inference(self) -> 'ViTConfig':
    """The backbone that draws nothing at random."""
    return dataclasses.replace(
        self, drop_path_rate=0.0, rope_shift=None, rope_jitter=None,
        rope_rescale=None)

  def for_platform(self, platform: str) -> 'ViTConfig':
    """The backbone with 'auto' replaced by what suits cpu, gpu or tpu."""
    on_cpu = platform == 'cpu'
    return _with_auto(self, {
        'dtype': 'float32' if on_cpu else 'bfloat16',
        'packing': 'stream' if on_cpu else 'tuple',
        'attention': attention.choose(
            platform, self.embed_dim, self.num_heads)})

  def with_kernel(self, platform: str) -> 'ViTConfig':
    """The backbone with the attention that suits a platform best."""
    return dataclasses.replace(self, attention=attention.choose(
        platform, self.embed_dim, self.num_heads))

  def beside(self, student: Any) -> 'ViTConfig':
    """A frozen teacher as it runs beside a student of these options."""
    return dataclasses.replace(
        self, dtype=student.dtype, attention='auto',
        packing=getattr(student, 'packing', 'auto'))

  def kept(self, rows: int) -> float:
    """Share of a group's rows that stochastic depth leaves to compute."""
    # A rate that grows with depth weights rows instead of leaving them out.
    if not rows or not (self.drop_path_rate and self.drop_path_uniform):
      return 1.0
    return num_kept(rows, self.drop_path_rate) / rows

  def embedding_flops(self, image_px: int) -> float:
    """FLOPs of what first sees the pixels of an image; m·k·n counts twice."""
    patches = (image_px // self.patch_px) ** 2
    return (2.0 * patches * self.num_channels * self.patch_px ** 2
            * self.embed_dim)

  def flops(self, image_px: int, kept: float = 1.0) -> float:
    """FLOPs of a forward pass of an image.

    Args:
      image_px: side.
      kept: share of the rows that a residual branch computes.
    """
    d, hidden = self.embed_dim, self.ffn_hidden or 4 * self.embed_dim
    tokens = 1 + self.num_registers + (image_px // self.patch_px) ** 2
    products = 2 * tokens * d * (4 * d + (
        2 if self.ffn == 'mlp' else 3) * hidden)
    mixing = 4 * tokens * tokens * d
    return self.embedding_flops(image_px) + kept * self.depth * (
        products + mixing)

  def describe(self) -> str:
    """The backbone in words."""
    text = (f'ViT of {self.depth} blocks, width {self.embed_dim}, '
            f'{self.num_heads} heads, patches of {self.patch_px} px, '
            + (f'{self.num_registers} registers, ' if self.num_registers
               else '') + f'{self.position} positions')
    return text if self.learned_px is None else (
        f'{text} for {self.learned_px} px')

  def mistakes(self) -> Iterator[str]:
    """Yields a sentence for each thing that does not fit in these options."""
    if self.embed_dim % self.num_heads:
      yield (f'model.embed_dim={self.embed_dim} is not divisible by '
             f'model.num_heads={self.num_heads}')
    if self.attention not in ('auto', *attention.IMPLEMENTATIONS):
      yield (f'model.attention={self.attention!r} is not known: use one of '
             f'auto, {", ".join(attention.IMPLEMENTATIONS)}')
    if self.position == 'learned':
      if self.image_px < self.patch_px:
        yield (f'model.image_px={self.image_px} is less than model.patch_px='
               f'{self.patch_px}: set it to the side that positions are for')
      return
    bounds = (self.rope_min_period, self.rope_max_period)
    width = self.embed_dim // self.num_heads
    if width % 4:
      yield ('model.position=rope needs heads of a multiple of 4 numbers, and '
             f'model.embed_dim={self.embed_dim} with model.num_heads='
             f'{self.num_heads} gives {width}')
    if not (self.rope_periods or (
        bounds == (None, None) if self.rope_base
        else None not in bounds and bounds[0] <= bounds[1])):
      yield (f'model.rope_base={self.rope_base}, model.rope_min_period='
             f'{bounds[0]}, model.rope_max_period={bounds[1]}: set rope_base, '
             'or it to None and the two bounds, the shorter first')
    if self.rope_periods and len(self.rope_periods) != width // 4:
      yield (f'model.rope_periods has {len(self.rope_periods)} entries, and '
             f'a head takes {width // 4}')


def num_kept(rows: int, rate: float) -> int:
  """Rows of a group that a residual branch updates: max(int(r·(1−p)), 1)."""
  return max(int(rows * (1 - rate)), 1)


def _with_auto(config, choices: dict):
  return dataclasses.replace(config, **{
      key: value for key, value in choices.items()
      if getattr(config, key) == 'auto'})
