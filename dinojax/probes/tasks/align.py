"""Text alignment: a text tower, and a vision head on a frozen backbone.

Images and their captions are brought together, away from all others of the
batch. Parameters are split over the mesh as those of a backbone are.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp

from dinojax.core import tree
from dinojax.features import spec
from dinojax.losses import contrastive
from dinojax.models import network
from dinojax.models import rates
from dinojax.models.text import tower
from dinojax.models.text import vision_head
from dinojax.parallel import sharding
from dinojax.probes import task as task_lib
from dinojax.probes.tasks import dense

CHOICE = dense.CHOICE
TEXT, VISION, LOG_SCALE = 'text', 'vision', 'log_scale'
_NOT_DECAYED = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Align:
  """Contrastive alignment of images and texts.

  Batches have tokens [b, n] int32 and weight [b], 0 for padding.

  Attributes:
    text: sizes of the text tower.
    vision: sizes of the vision head.
    depth: blocks of the backbone.
    pixels: see dense.Pixels.
    gram_weight: weight of the loss that keeps the likeness of patches.
    gram_share: share of the patches that it compares in a step.
    gram_normalize: True compares cosines, else products.
    group_images: images among which rows that skip a branch are counted; it
      divides the rows of a device.

  Source: dino.txt, as DINOv3 trains it.
  Differs: the scale gets the gradient of the whole batch, where the reference
    lets it drift apart between processes.
  """

  text: tower.Config
  vision: vision_head.Config
  depth: int
  pixels: dense.Pixels = dense.Pixels()
  gram_weight: float = 0.0
  gram_share: float = 0.5
  gram_normalize: bool = False
  group_images: int = 1

  @functools.cached_property
  def choices(self) -> Mapping[str, spec.FeatureSpec]:
    """All tokens of the blocks that the vision head reads."""
    return {CHOICE: spec.FeatureSpec(
        vision_head.TOKENS, self.vision.layers(self.depth))}

  def init(self, key: jax.Array, widths: Sequence[int],
           choice: str) -> task_lib.Head:
    """Random weights of both, and the scale at its start."""
    del widths, choice
    keys = dict(zip((TEXT, VISION), jax.random.split(key), strict=True))
    fresh = {name: nnx.to_pure_dict(nnx.state(make(
        config, rngs=nnx.Rngs(keys[name])), nnx.Param))
             for name, (make, config) in self._modules.items()}
    return {'params': fresh | {LOG_SCALE: jnp.full(
        (1,), contrastive.LOG_SCALE_START)}, 'stats': {}}

  @property
  def _modules(self) -> dict[str, tuple[type, Any]]:
    return {TEXT: (tower.Tower, self.text),
            VISION: (vision_head.VisionHead, self.vision)}

  def nets(self, mesh: Any = None) -> dict[str, network.Functional]:
    """Both networks on a mesh; None: the one that is active."""
    mesh = mesh or jax.sharding.get_abstract_mesh()
    return {name: network.functional(make, config, mesh)
            for name, (make, config) in self._modules.items()}

  def specs(self, mesh: Any) -> tree.Tree:
    """How the parameters are split over a mesh."""
    return {name: net.specs for name, net in self.nets(mesh).items()} | {
        LOG_SCALE: jax.P()}

  def prepare(self, batch: tree.Tree, key: jax.Array) -> tree.Tree:
    """Images as they are: crops are whole patches."""
    del key
    return batch

  def draw(self, key: jax.Array, step: jax.Array,
           batch: tree.Tree) -> tree.Tree:
    """Rows that skip branches, dropped values, and patches to compare."""
    del step
    rows = len(batch['weight'])
    text, vision, patches = jax.random.split(key, 3)
    out = {TEXT: tower.draw(text, self.text, rows), VISION: vision_head.draw(
        vision, self.vision, num_groups=rows // self.group_images,
        rows=self.group_images)}
    if self.gram_weight:
      out['patches'] = contrastive.sample(
          patches, self._num_patches(batch), self.gram_share)
    return out

  def _num_patches(self, batch: tree.Tree) -> int:
    height, width = batch['image'].shape[1:3]
    side = self.pixels.patch_px
    return (height // side) * (width // side)

  def outputs(self, head: task_lib.Head, features: task_lib.Features,
              batch: tree.Tree, draws: tree.Tree | None
              ) -> tuple[tree.Tree, tree.Tree]:
    """image and text [b, e], log_scale [1], and patches if they are compared.

    Of a batch without tokens there is no text.
    """
    params, draws = head['params'], draws or {}
    out = {LOG_SCALE: params[LOG_SCALE]}
    rows = vision_head.inputs(features)
    out |= self._seen(params[VISION], rows, _along(
        draws.get(VISION), rows['cls']))
    if draws and self.gram_weight:
      out['backbone'] = rows['patches']
    if 'tokens' in batch:
      out[TEXT] = self.embed_text(params[TEXT], batch['tokens'], _along(
          draws.get(TEXT), batch['tokens']))
    return out, {}

  def _seen(self, params: tree.Tree, rows: tree.Tree,
            drawn: tree.Tree) -> tree.Tree:
    """image [b, e], and patches [b, p, d] of the head."""
    rows = rows | ({'draws': drawn} if drawn else {})
    out = self.nets()[VISION].apply(params, rows, _embedded)
    return {'image': out['embedding'], 'patches': out['patches']}

  def embed_text(self, params: tree.Tree, tokens: jax.Array,
                 drawn: tree.Tree = None) -> jax.Array:
    """[b, e] embeddings of texts, not normalised.

    Args:
      params: parameters of the text tower.
      tokens: [b, n] int32.
      drawn: see tower.draw; None: nothing is random.
    """
    rows = {'tokens': tokens} | ({'draws': drawn} if drawn else {})
    return self.nets()[TEXT].apply(params, rows, _read)

  def loss(self, outputs: tree.Tree, batch: tree.Tree,
           draws: tree.Tree | None) -> jax.Array:
    """Both cross-entropies of the global batch, and the Gram loss."""
    weight = batch['weight']
    value = contrastive.contrastive(
        outputs['image'], outputs[TEXT], outputs[LOG_SCALE], weight)
    if self.gram_weight:
      value += self.gram_weight * contrastive.patch_gram(
          outputs['patches'], outputs['backbone'],
          draws and draws.get('patches'), normalize=self.gram_normalize,
          weight=weight)
    return value

  def taken(self, backbone: tree.Tree) -> tree.Tree:
    """Nothing is of the backbone."""
    del backbone
    return {}

  def settle(self, params: tree.Tree) -> tree.Tree:
    """The scale within its limits."""
    return params | {LOG_SCALE: contrastive.clamped(params[LOG_SCALE])}


def weight_decays(params: tree.Tree) -> tree.Tree:
  """Factors of the weight decay: 0 of biases, norms, scales and gammas.

  Source: DINOv3's text alignment, whose embeddings of tokens and places decay.
  """
  return rates.weight_decays(params) | {LOG_SCALE: _NOT_DECAYED}


def _along(drawn: tree.Tree | None, rows: jax.Array) -> tree.Tree:
  return sharding.as_rows_of(drawn, rows) if drawn else {}


def _embedded(net: vision_head.VisionHead, rows: tree.Tree) -> tree.Tree:
  return net(rows)


def _read(net: tower.Tower, rows: tree.Tree) -> jax.Array:
  return net(rows['tokens'], rows.get('draws'))
