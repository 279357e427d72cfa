"""Trained heads on disk: head.safetensors and head.json.

A folder holds one head with its task, the names of its classes, and which
backbone it was trained on. Tensors carry our own names, under `params/` and
`stats/`.
"""

from collections.abc import Mapping
import dataclasses
import json
import pathlib

import numpy as np

from dinojax.core import atomic
from dinojax.core import config as config_lib
from dinojax.core import errors
from dinojax.core import tree
from dinojax.interop import files
from dinojax.interop import told
from dinojax.probes import head as head_lib

TENSORS, DESCRIPTION = 'head.safetensors', 'head.json'
_VERSION = 1


def is_head(folder: str) -> bool:
  """Tells whether a folder holds a head that `save` wrote."""
  return (pathlib.Path(folder) / DESCRIPTION).exists()


def save(folder: str, head: head_lib.Head):
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


def load(folder: str) -> head_lib.Head:
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
  if version != _VERSION or kind not in tuple(head_lib.KINDS):
    raise errors.UserError(
        f'{place / DESCRIPTION} is of version {told.text(version)}, kind '
        f'{told.text(kind)}: this dinojax reads version {_VERSION} of '
        f'{", ".join(head_lib.KINDS)}')
  problems = config_lib.Errors()
  made = {name: config_lib.section(
      cls, values.get(name), path=name, problems=problems)
          for name, cls in (('task', head_lib.KINDS[kind]),
                            ('origin', head_lib.Origin))}
  if problems.messages:
    raise errors.UserError(
        f'{place / DESCRIPTION}: {"; ".join(problems.messages)[:500]}; train '
        'the head again')
  state = files.read(str(place / TENSORS))
  parts = {part: _tree(place, part, state, shapes) for part, shapes in
           head_lib.shapes_of(
               made['task'], made['origin'].widths).items()}
  return head_lib.Head(made['task'], parts['params'], parts.get('stats', {}),
              made['origin'], tuple(map(str, values.get('classes', ()))),
              dict(values.get('facts', {})))


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
