"""Interface of what a head learns to the training of heads.

A task is pure and holds no arrays: sizes, losses, and which features of the
backbone its heads see. Features are those of spec.compute for one choice: for
every layer, in the order of depth, arrays by output.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jax

from dinojax.core import tree
from dinojax.features import spec

Array = jax.Array
Head = dict[str, tree.Tree]  # 'params', and 'stats' of the batches seen
Features = list[spec.Outputs]


class Task(Protocol):
  """A task that heads learn.

  A task with `specs`, a function of a mesh to PartitionSpecs of parameters,
  has these split over it; of others every device has a copy.

  Attributes:
    choices: features that heads see, by name. Each has heads of its own; the
      backbone runs once for all of them.
  """

  choices: Mapping[str, spec.FeatureSpec]

  def init(self, key: Array, widths: Sequence[int], choice: str) -> Head:
    """A head before its first step.

    Args:
      key: random key.
      widths: width of every layer of the features.
      choice: name of the features.
    """

  def taken(self, backbone: tree.Tree) -> tree.Tree:
    """Parts of a backbone that heads begin as; {} of most.

    Args:
      backbone: its parameters; what is returned replaces entries of a head's
        parameters.
    """

  def prepare(self, batch: tree.Tree, key: Array) -> tree.Tree:
    """Changes colours and the like on the device; never geometry."""

  def draw(self, key: Array, step: Array, batch: tree.Tree) -> tree.Tree:
    """All that is random in a step, or hangs on its number."""

  def outputs(self, head: Head, features: Features, batch: tree.Tree,
              draws: tree.Tree | None) -> tuple[tree.Tree, tree.Tree]:
    """Outputs of one head for a batch, and its next statistics.

    Args:
      head: parameters and statistics.
      features: features of the head's choice.
      batch: a batch as `prepare` returns it.
      draws: see `draw`; None: inference.
    """

  def loss(self, outputs: tree.Tree, batch: tree.Tree,
           draws: tree.Tree | None) -> Array:
    """The loss of the global batch; rows that are padding weigh nothing."""

  def settle(self, params: tree.Tree) -> tree.Tree:
    """The parameters after an update, where they have limits."""


def read_features(arrays: Mapping[str, Array], wanted: spec.FeatureSpec,
                  depth: int) -> Features:
  """Features of a choice out of arrays that were stored once for all.

  Args:
    arrays: by `array_name`; outputs that were left out are missing.
    wanted: outputs and layers.
    depth: layers of the backbone.
  """
  layers = []
  for i in wanted.indices(depth):
    places = {name: array_name(wanted, name, i) for name in wanted.outputs}
    layers.append({name: arrays[place] for name, place in places.items()
                   if place in arrays})
  return layers


def stored_features(choices: Mapping[str, spec.FeatureSpec],
                    computed: Mapping[str, Features], depth: int,
                    of_last: tuple[str, ...] = ()) -> dict[str, Array]:
  """The inverse of `read_features`, for several choices, each array once.

  Args:
    choices: outputs and layers of each.
    computed: see spec.compute.
    depth: layers of the backbone.
    of_last: outputs that are read of the last layer alone.
  """
  out: dict[str, Any] = {}
  for choice, wanted in choices.items():
    for i, layer in zip(wanted.indices(depth), computed[choice], strict=True):
      for name in wanted.outputs:
        if name not in of_last or i == wanted.indices(depth)[-1]:
          out[array_name(wanted, name, i)] = layer[name]
  return out


def array_name(wanted: spec.FeatureSpec, output: str, layer: int) -> str:
  """Name of an array that several choices may read."""
  windows = f'/{wanted.windows}' if wanted.windows else ''
  return f'{wanted.place}/{output}/{layer}{windows}'
