"""The ConvNeXt of DINOv3: a student without attention.

Same outputs as the ViT: CLS is the mean of the last map, patches are its
positions, at a stride of 32 pixels. Masks and draws do not apply to it.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import math
from typing import Any, ClassVar

import einops
from flax import nnx
import jax
import jax.numpy as jnp

from dinojax.core import fields
from dinojax.models import layers
from dinojax.parallel import sharding

Array = jax.Array
Outputs = dict[str, Array]


# Every parameter by its path, and by which rule its rate is scaled: there are
# no blocks to count, so nothing of it is slowed down.
LR_KINDS = (
    (r'stage\d/(blocks/)?(norm|reduce|dwconv|pwconv[12]|scale)'
     r'/(kernel|bias|scale|gamma)', 'plain'),
    (r'norm/(scale|bias)', 'plain'))


@dataclasses.dataclass(frozen=True)
class ConvNeXtConfig:
  """Everything that shapes a ConvNeXt; sizes by name are in `zoo`."""

  FAMILY: ClassVar[str] = 'convnext'

  depths: tuple[fields.Positive, fields.Positive,
                fields.Positive, fields.Positive]  # Blocks of each stage.
  dims: tuple[fields.Positive, fields.Positive,
              fields.Positive, fields.Positive]  # Width of each stage.
  # Grid that inner maps are resized to, in pixels; None: their own.
  patch_px: fields.Positive | None = None
  num_channels: fields.Positive = 3  # Channels of an image.
  norm_epsilon: fields.NonNegative = 1e-6  # Added to the variance.
  layerscale: fields.NonNegative = 1e-6  # LayerScale's start.
  dtype: str = 'float32'  # Activations: auto, float32 or bfloat16.
  remat: str = 'dots'  # Values made again, see layers.REMAT.

  @property
  def compute_dtype(self):
    """The dtype of activations."""
    return jnp.dtype(self.dtype)

  @property
  def token_px(self) -> int:
    """Side of the square of pixels that a position stands for."""
    return math.prod(stride(i) for i in range(len(self.depths)))

  def grid(self, image_px: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of the last map of an image."""
    return image_px[0] // self.token_px, image_px[1] // self.token_px

  @property
  def embed_dim(self) -> int:
    """Width of the features."""
    return self.dims[-1]

  @property
  def depth(self) -> int:
    """Stages, which count as layers."""
    return len(self.depths)


  @property
  def layer_dims(self) -> tuple[int, ...]:
    """Width of the features of every layer."""
    return self.dims

  def layer_grid(self, image_px: tuple[int, int],
                 layer: int) -> tuple[int, int]:
    """Rows and columns of the map of a layer."""
    step = self.patch_px or math.prod(stride(i) for i in range(layer + 1))
    return image_px[0] // step, image_px[1] // step

  @property
  def side_px(self) -> int:
    """Sides of images that are multiples of this lose no pixel."""
    return self.token_px

  @property
  def unit_px(self) -> int:
    """Sides of images must be multiples of this: 1, so any will do."""
    return 1

  @property
  def has_attention(self) -> bool:
    """True if there are attention maps: a ConvNeXt has none."""
    return False

  @property
  def learned_px(self) -> None:
    """Side of the images that positions were learned at: there are none."""

  @property
  def hides_patches(self) -> bool:
    """True if a patch can be hidden: not without a mask token."""
    return False

  @property
  def slows_layers(self) -> bool:
    """True if layer-wise decay applies: no parameter here is slowed."""
    return False

  def inference(self) -> 'ConvNeXtConfig':
    """The backbone that draws nothing at random, as it never does."""
    return self

  def for_platform(self, platform: str) -> 'ConvNeXtConfig':
    """The backbone with 'auto' replaced by what suits cpu, gpu or tpu."""
    if self.dtype != 'auto':
      return self
    return dataclasses.replace(
        self, dtype='float32' if platform == 'cpu' else 'bfloat16')

  def with_kernel(self, platform: str) -> 'ConvNeXtConfig':
    """The backbone itself: there is no attention."""
    del platform
    return self

  def beside(self, student: Any) -> 'ConvNeXtConfig':
    """A frozen teacher as it runs beside a student of these options."""
    return dataclasses.replace(self, dtype=student.dtype)

  def kept(self, rows: int) -> float:
    """Share of a group's rows that is computed: there is no such draw."""
    del rows
    return 1.0

  def embedding_flops(self, image_px: int) -> float:
    """FLOPs of what first sees the pixels of an image; m·k·n counts twice."""
    return self._reduction_flops(0, image_px)

  def flops(self, image_px: int, kept: float = 1.0) -> float:
    """FLOPs of a forward pass of an image; `kept` is 1."""
    del kept
    total = 0.0
    for stage, width in enumerate(self.dims):
      # 7 × 7 depthwise, then two products of 4 × the width.
      block = 2.0 * self._pixels(stage, image_px) * width * (49 + 8 * width)
      total += self._reduction_flops(stage, image_px)
      total += self.depths[stage] * block
    return total

  def _pixels(self, stage: int, image_px: int) -> int:
    return (image_px // math.prod(stride(i) for i in range(stage + 1))) ** 2

  def _reduction_flops(self, stage: int, image_px: int) -> float:
    last = self.dims[stage - 1] if stage else self.num_channels
    return 2.0 * self._pixels(stage, image_px) * last * (
        stride(stage) ** 2) * self.dims[stage]

  def describe(self) -> str:
    """The backbone in words."""
    return (f'ConvNeXt of {"/".join(map(str, self.depths))} blocks, widths '
            f'{"/".join(map(str, self.dims))}, one token for '
            f'{self.token_px} px')

  def mistakes(self) -> Iterator[str]:
    """Yields nothing: all values of these options fit together."""
    return iter(())


def stride(stage: int) -> int:
  """By how much a stage reduces the map."""
  return 4 if stage == 0 else 2


class Block(nnx.Module):
  """x + gamma · pw2(gelu(pw1(norm(dwconv x))))."""

  def __init__(self, width: int, config: ConvNeXtConfig, *, rngs: nnx.Rngs):
    dtype = config.compute_dtype
    self.dwconv = layers.conv(width, width, 7, groups=width, padding=3,
                              dtype=dtype, rngs=rngs)
    self.norm = layers.norm('layernorm', width, epsilon=config.norm_epsilon,
                            dtype=dtype, rngs=rngs)
    self.pwconv1 = layers.linear(width, 4 * width, dtype=dtype, rngs=rngs)
    self.pwconv2 = layers.linear(4 * width, width, dtype=dtype, rngs=rngs)
    self.scale = layers.LayerScale(width, config.layerscale, dtype=dtype)

  def __call__(self, x: Array) -> Array:
    y = self.pwconv1(self.norm(self.dwconv(x)))
    return x + self.scale(self.pwconv2(layers.gelu(y)))


class Stage(nnx.Module):
  """A reduction of the map, then blocks of one width."""

  def __init__(self, index: int, config: ConvNeXtConfig, *, rngs: nnx.Rngs):
    self.config, self.is_stem = config, index == 0
    dtype, width = config.compute_dtype, config.dims[index]
    last = config.num_channels if index == 0 else config.dims[index - 1]
    step = stride(index)
    self.reduce = layers.conv(last, width, step, stride=step, dtype=dtype,
                              rngs=rngs)
    self.norm = layers.norm(
        'layernorm', width if index == 0 else last,
        epsilon=config.norm_epsilon, dtype=dtype, rngs=rngs)
    self.blocks = nnx.vmap(lambda r: Block(width, config, rngs=r))(
        rngs.split(config.depths[index]))

  def __call__(self, x: Array) -> Array:
    dtype = self.config.compute_dtype
    reduce = sharding.gather(self.reduce, dtype)
    norm = sharding.gather(self.norm, dtype)
    x = norm(reduce(x)) if self.is_stem else reduce(norm(x))

    def body(x, block):
      return sharding.gather(block, dtype)(x), None

    body = layers.remat(body, self.config.remat)
    return jax.lax.scan(body, x, self.blocks)[0]


class ConvNeXt(nnx.Module):
  """Four stages, and one norm for CLS and patches.

  Source: ConvNeXt-v1 as DINOv3 distils it.
  """

  def __init__(self, config: ConvNeXtConfig, *, rngs: nnx.Rngs):
    self.config = config
    for i in range(len(config.depths)):
      setattr(self, f'stage{i}', Stage(i, config, rngs=rngs))
    self.norm = layers.norm(
        'layernorm', config.embed_dim, epsilon=config.norm_epsilon,
        dtype=config.compute_dtype, rngs=rngs)

  def __call__(self, crops: Mapping[str, Array], *,
               masks: Mapping[str, Array] | None = None,
               draws: Mapping[str, dict[str, Array]] | None = None,
               train: bool = False) -> dict[str, Outputs]:
    """Features of the crops of every size, as `vit.ViT` returns them.

    Args:
      crops: by kind, [r, y, x, c] normalised images.
      masks: ignored: there is no masked modelling without tokens.
      draws: ignored.
      train: ignored.

    Returns:
      By kind: cls [r, d], float32, and patches [r, p, d] after the final
      norm, registers [r, 0, d], prenorm [r, p, d].
    """
    last = {kind: self.maps(images)[-1] for kind, images in crops.items()}
    return {kind: self._features(x, x, True) for kind, x in last.items()}

  def maps(self, images: Array) -> list[Array]:
    """[r, y, x, c] images to the map [r, y', x', d] of every stage."""
    x, out = images.astype(self.config.compute_dtype), []
    for i in range(len(self.config.depths)):
      x = getattr(self, f'stage{i}')(x)
      out.append(x)
    return out

  def intermediate(self, images: Array, indices: Sequence[int], *,
                   norm: bool = True) -> list[Outputs]:
    """Features after some of the stages, in the order of their depth.

    Args:
      images: [r, y, x, c] normalised.
      indices: stages, counted from 0; their widths differ.
      norm: True applies the final norm to the last stage; the others have
        none.

    Source: DINOv3: with `patch_px`, positions are resized to the grid of
      patches of that size (bilinear, antialiased); CLS is the mean before.
    """
    kind = 'normed' if norm else 'raw'
    return self.read(images, [(kind, index) for index in sorted(indices)])

  def read(self, images: Array, wanted: Sequence[tuple[str, int]],
           draws: dict[str, Array] | None = None, *,
           frozen: bool = False) -> list[Outputs]:
    """Features of any stages, in one pass through them.

    Args:
      images: [r, y, x, c] normalised.
      wanted: (kind, stage) each, stages counted from 0: 'normed' are features
        after the stage and the final norm, which the last one alone has
        ('final': that on its own grid);
        'raw' without it, 'before' what enters the stage.
      draws: nothing is random here.
      frozen: nothing is copied here.

    Returns:
      Features for each, as `__call__` has them.
    """
    del draws, frozen
    maps, out = self.maps(images), []
    for kind, stage in wanted:
      index = stage - (kind == 'before')
      normed = kind in ('final', 'normed') and index == len(maps) - 1
      x = (maps[index] if kind == 'final'
           else self._on_grid(maps[index], images.shape[1:3]))
      out.append(self._features(x, maps[index], normed))
    return out

  def _on_grid(self, x: Array, image_px: tuple[int, int]) -> Array:
    """A map resized to the grid of patches, where there is one."""
    if not self.config.patch_px:
      return x
    grid = tuple(n // self.config.patch_px for n in image_px)
    return jax.image.resize(
        x, (x.shape[0], *grid, x.shape[-1]), 'linear', antialias=True)

  def _features(self, x: Array, whole: Array, normed: bool) -> Outputs:
    """Features of a map; CLS is the mean of `whole`, then gets the norm."""
    cls = whole.mean((1, 2), dtype=jnp.float32)
    tokens = einops.rearrange(x, 'r y x d -> r (y x) d')
    out = {'cls': cls, 'registers': tokens[:, :0], 'patches': tokens,
           'prenorm': tokens}
    if not normed:
      return out
    gathered = lambda: sharding.gather(self.norm, self.config.compute_dtype)
    return out | {'cls': layers.in_float32(gathered())(cls),
                  'patches': gathered()(tokens)}
