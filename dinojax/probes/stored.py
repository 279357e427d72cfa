"""Trained heads on disk: head.safetensors and head.json.

A folder holds one head with its task, the names of its classes, and which
backbone it was trained on. Tensors carry our own names, under `params/` and
`stats/`.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import json
import pathlib
import types
from typing import Any

import jax
import numpy as np

from dinojax.core import atomic
from dinojax.core import config as config_lib
from dinojax.core import errors
from dinojax.core import tree
from dinojax.features import backbone as backbone_lib
from dinojax.interop import files
from dinojax.interop import told
from dinojax.probes.tasks import depth
from dinojax.probes.tasks import segment

TENSORS, DESCRIPTION = 'head.safetensors', 'head.json'
KINDS: Mapping[str, type] = {
    'segmentation': segment.Segment, 'depth': depth.Depth,
    'depth_dpt': depth.DptDepth}
_VERSION = 1


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
    task: what it learned, of KINDS.
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
                if isinstance(self.task, cls))

  @property
  def stack(self) -> dict[str, tree.Tree]:
    """Parameters and statistics as a stack of one."""
    return jax.tree.map(lambda x: x[None], {
        'params': self.params, 'stats': self.stats})

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
    task: what they learned.
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


def is_head(folder: str) -> bool:
  """Tells whether a folder holds a head that `save` wrote."""
  return (pathlib.Path(folder) / DESCRIPTION).exists()


def save(folder: str, head: Head):
  """Writes a head in the place of an existing one."""
  place = pathlib.Path(folder)
  place.mkdir(parents=True, exist_ok=True)
  state = {f'{part}/{name}': value for part, values in (
      ('params', head.params), ('stats', head.stats))
           for name, value in tree.items(values)}
  with atomic.replacing(place / TENSORS) as temporary:
    files.write_safetensors(str(temporary), state)
    (place / DESCRIPTION).unlink(missing_ok=True)  # it is of other tensors
  atomic.write_text(place / DESCRIPTION, json.dumps({
      'version': _VERSION, 'kind': head.kind,
      'task': dataclasses.asdict(head.task), 'classes': head.classes,
      'origin': dataclasses.asdict(head.origin), 'facts': dict(head.facts)},
                                                    indent=1, default=str))


def load(folder: str) -> Head:
  """Reads what `save` wrote.

  Raises:
    UserError: missing or damaged files, or of a later version.
  """
  if not is_head(folder):
    raise errors.UserError(
        f'{folder} holds no head: {DESCRIPTION} is missing; `dinojax evaluate` '
        'keeps the heads that it trains in heads/ of its results')
  place = pathlib.Path(folder)
  values = told.Told.read(place / DESCRIPTION)
  version, kind = values.get('version', None), values.get('kind', None)
  if version != _VERSION or kind not in tuple(KINDS):
    raise errors.UserError(
        f'{place / DESCRIPTION} is of version {told.text(version)}, kind '
        f'{told.text(kind)}: this dinojax reads version {_VERSION} of '
        f'{", ".join(KINDS)}')
  problems = config_lib.Errors()
  made = {name: config_lib.section(
      cls, values.get(name), path=name, problems=problems)
          for name, cls in (('task', KINDS[kind]), ('origin', Origin))}
  if problems.messages:
    raise errors.UserError(
        f'{place / DESCRIPTION}: {"; ".join(problems.messages)[:500]}; train '
        'the head again')
  state = files.read(str(place / TENSORS))
  parts = {part: _tree(place, part, state, shapes) for part, shapes in
           shapes_of(made['task'], made['origin'].widths).items()}
  return Head(made['task'], parts['params'], parts.get('stats', {}),
              made['origin'], tuple(map(str, values.get('classes', ()))),
              dict(values.get('facts', {})))


def shapes_of(task: Any, widths: tuple[int, ...]) -> dict[str, tree.Tree]:
  """Shapes of the params and stats of a task's head on layers of widths."""
  choice, = task.choices
  return jax.eval_shape(lambda: task.init(
      jax.random.key(0), list(widths), choice))


def _tree(place: pathlib.Path, part: str, state: Mapping[str, np.ndarray],
          shapes: tree.Tree) -> tree.Tree:
  """The tensors of a part as a tree of known shapes.

  Raises:
    UserError: other tensors.
  """
  prefix = f'{part}/'
  flat = {name.removeprefix(prefix): value for name, value in state.items()
          if name.startswith(prefix)}
  wanted = dict(tree.items(shapes))
  wrong = [name for name in {**wanted, **flat} if name not in flat
           or name not in wanted or flat[name].shape != wanted[name].shape
           or flat[name].dtype.kind != 'f']
  if wrong:
    raise errors.UserError(
        f'{place / TENSORS} does not fit {DESCRIPTION}: '
        f'{", ".join(sorted(wrong)[:5])}; train the head again')
  return tree.map_with_name(lambda name, _: flat[name], shapes)


def _shown(widths: tuple[int, ...]) -> str:
  return ', '.join(map(str, widths))
