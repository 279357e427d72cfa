"""Cameras, depths and points of scenes, on a frozen backbone."""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
from typing import Any

import jax

from dinojax.core import tree
from dinojax.features import spec
from dinojax.losses import scene as losses
from dinojax.models.geometry import scene
from dinojax.probes import task as task_lib
from dinojax.probes.tasks import dense

CHOICE = dense.CHOICE
_LEAST = 100  # pixels of the first frame with a depth, of a scene that counts


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scene:
  """Frames of a scene, seen together.

  Batches have image [b, s, y, x, c] of whole patches, depth [b, s, y, x] in
  metres, 0 where unknown, extrinsics [b, s, 3, 4] world-to-camera, intrinsics
  [b, s, 3, 3], and weight [b].

  Attributes:
    network: sizes.
    layer: layer of the backbone that is read; None: the last.

  Source: VGGT. It is shown to fit scenes; nothing is claimed beyond that.
  """

  network: scene.Config
  layer: int | None = None

  @functools.cached_property
  def choices(self) -> Mapping[str, spec.FeatureSpec]:
    """The map of a layer."""
    layers = 1 if self.layer is None else (self.layer,)
    return {CHOICE: spec.FeatureSpec(('map',), layers)}

  def init(self, key: jax.Array, widths: Sequence[int],
           choice: str) -> task_lib.Head:
    """Random weights."""
    del widths, choice
    return {'params': scene.init(key, self.network), 'stats': {}}

  def taken(self, backbone: tree.Tree) -> tree.Tree:
    """Nothing is of the backbone."""
    del backbone
    return {}

  def beside(self, config: Any) -> 'Scene':
    """The task as it runs on a backbone: the same."""
    del config
    return self

  def prepare(self, batch: tree.Tree, key: jax.Array) -> tree.Tree:
    """Batches as they are, with what losses compare."""
    del key
    return batch | {'truth': losses.truth(
        batch['depth'], batch['extrinsics'], batch['intrinsics'])}

  def draw(self, key: jax.Array, step: jax.Array,
           batch: tree.Tree) -> tree.Tree:
    """Nothing is random."""
    del key, step, batch
    return {}

  def outputs(self, head: task_lib.Head, features: task_lib.Features,
              batch: tree.Tree, draws: tree.Tree | None
              ) -> tuple[scene.Predicted, tree.Tree]:
    """Predictions for all frames."""
    del draws
    layer, = features
    return scene.apply(head['params'], self.network, layer['map'],
                       batch['image'].shape[2:4]), head['stats']

  def loss(self, outputs: scene.Predicted, batch: tree.Tree,
           draws: tree.Tree | None) -> jax.Array:
    """Losses of cameras, depths and points, by their weights."""
    del draws
    values = self.losses(outputs, batch)
    return sum(losses.WEIGHTS[name] * value for name, value in values.items())

  def losses(self, outputs: scene.Predicted,
             batch: tree.Tree) -> dict[str, jax.Array]:
    """The losses by name, not weighted."""
    truth, weight = batch['truth'], batch['weight']
    counts = weight * (truth.valid[:, 0].sum((1, 2)) > _LEAST)
    valid = truth.valid & (counts > 0)[:, None, None, None]
    return {
        'camera': losses.cameras(outputs.cameras, truth.cameras, counts),
        'depth': losses.confident(
            outputs.depth[..., None], outputs.depth_confidence,
            truth.depth[..., None], valid, are_points=False),
        'points': losses.confident(
            outputs.points, outputs.point_confidence, truth.points, valid,
            are_points=True)}

  def settle(self, params: tree.Tree) -> tree.Tree:
    """Parameters without limits."""
    return params
