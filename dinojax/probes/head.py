"""A trained head, with all that is needed to use it."""

from collections.abc import Mapping, Sequence
import dataclasses
import types
from typing import Any

import jax
import numpy as np

from dinojax.core import errors
from dinojax.core import tree
from dinojax.features import backbone as backbone_lib
from dinojax.probes.tasks import align
from dinojax.probes.tasks import depth
from dinojax.probes.tasks import detect
from dinojax.probes.tasks import eomt
from dinojax.probes.tasks import mask2former
from dinojax.probes.tasks import masks
from dinojax.probes.tasks import segment

KINDS: Mapping[str, type] = {
    'segmentation': segment.Segment, 'depth': depth.Depth,
    'depth_dpt': depth.DptDepth, 'relative_depth': depth.RelativeDepth,
    'masks': masks.Masks, 'mask2former': mask2former.Mask2Former,
    'eomt': eomt.Eomt, 'detector': detect.Detect, 'text': align.Align}


@dataclasses.dataclass(frozen=True)
class Origin:
  """The backbone that a head was trained on.

  Attributes:
    source: its name when it was.
    weights: digest of its weights; '': not known.
    widths: width of every layer that the head reads.
  """

  source: str
  weights: str
  widths: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Head:
  """A head that can be used.

  Attributes:
    task: task that it learned, of KINDS.
    params: its parameters, float32 numpy.
    stats: its statistics; {} of most.
    origin: see Origin.
    classes: names of the classes; () of depths.
    facts: more about it, such as what it was trained on.
  """

  task: Any
  params: tree.Tree
  stats: tree.Tree
  origin: Origin
  classes: tuple[str, ...] = ()
  facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def kind(self) -> str:
    """The name of its task."""
    return next(kind for kind, cls in KINDS.items()
                if type(self.task) is cls)

  @property
  def stack(self) -> dict[str, tree.Tree]:
    """Parameters and statistics as a stack of one."""
    return jax.tree.map(lambda x: x[None], {
        'params': self.params, 'stats': self.stats})

  def on(self, model: backbone_lib.Backbone) -> 'Head':
    """The head with the arithmetic and the kernels of a backbone."""
    return dataclasses.replace(self, task=self.task.beside(model.config))

  def check(self, model: backbone_lib.Backbone, weights: str) -> str | None:
    """A sentence if the backbone is another than in training.

    Args:
      model: a backbone.
      weights: digest of its weights.

    Raises:
      UserError: the head does not fit it.
    """
    wanted = next(iter(self.task.choices.values()))
    trained_on = f'give the model that it was trained on, {self.origin.source}'
    try:
      wanted.check(model.config)
    except errors.UserError as error:
      raise errors.UserError(
          f'the head does not fit {model.source}: {error}; {trained_on}'
          ) from error
    widths = tuple(wanted.widths(model.config))
    if widths != self.origin.widths:
      raise errors.UserError(
          f'the head reads layers of {_shown(self.origin.widths)} values and '
          f'those of {model.source} have {_shown(widths)}: {trained_on}')
    if self.origin.weights and weights != self.origin.weights:
      return (f'the head was trained on {self.origin.source}, whose weights '
              f'are not those of {model.source}: its answers mean little')
    return None


def of_stack(task: Any, heads: Mapping[str, tree.Tree], index: int,
             model: backbone_lib.Backbone, weights: str,
             classes: Sequence[str] = (),
             facts: Mapping[str, Any] = types.MappingProxyType({})) -> Head:
  """A head of a stack.

  Args:
    task: task of the heads.
    heads: params and stats of the stack.
    index: its number.
    model: the backbone.
    weights: digest of its weights.
    classes: see Head.
    facts: see Head.
  """
  params, stats = (jax.tree.map(lambda x: np.asarray(x[index]), heads[name])
                   for name in ('params', 'stats'))
  wanted = next(iter(task.choices.values()))
  return Head(task, params, stats, Origin(
      model.source, weights, tuple(wanted.widths(model.config))),
              tuple(classes), dict(facts))


def shapes_of(task: Any, widths: tuple[int, ...]) -> dict[str, tree.Tree]:
  """Shapes of the params and stats of a task's head on layers of widths."""
  choice, = task.choices
  return jax.eval_shape(lambda: task.init(
      jax.random.key(0), list(widths), choice))


def _shown(widths: tuple[int, ...]) -> str:
  return ', '.join(map(str, widths))
