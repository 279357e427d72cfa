"""Trained heads on disk: head.safetensors and head.json.

A folder holds one head with its task, the names of its classes, and which
backbone it was trained on. Tensors carry our own names, under `params/` and
`stats/`.
"""

import dataclasses
import hashlib
import json
import os
import pathlib

from etils import epath

from dinojax.core import atomic
from dinojax.core import config as config_lib
from dinojax.core import errors
from dinojax.core import paths
from dinojax.core import tree
from dinojax.interop import files
from dinojax.interop import hub
from dinojax.interop import store
from dinojax.interop import told
from dinojax.probes import head as head_lib

TENSORS, DESCRIPTION = 'head.safetensors', 'head.json'
_VERSION = 1
_CHUNK = 2**24  # bytes that are read at a time


def is_head(folder: str) -> bool:
  """Tells whether a folder holds a head that `save` wrote."""
  return (epath.Path(folder) / DESCRIPTION).exists()


def digest(place: str) -> str:
  """Hash of the contents of a head: of a folder, or of files with commas.

  Args:
    place: a head of ours, files, a folder of transformers, or hf:OWNER/NAME.

  Raises:
    UserError: one of them is missing.
  """
  out, place = hashlib.sha256(), paths.expand(place)
  if place.startswith(hub.PREFIX):
    place, _ = hub.fetch(place)
  if is_head(place):
    members = [os.path.join(place, name) for name in (DESCRIPTION, TENSORS)]
  elif os.path.isdir(place):
    members = [os.path.join(place, name) for name in sorted(os.listdir(place))
               if name.endswith(('.safetensors', '.json'))]
  else:
    members = map(paths.expand, place.split(','))
  for path in map(epath.Path, members):
    if not path.exists():
      raise errors.UserError(f'{path} is missing: give a head that is there')
    with path.open('rb') as file:
      while data := file.read(_CHUNK):
        out.update(data)
  return out.hexdigest()[:16]


def save(folder: str, head: head_lib.Head):
  """Writes a head in the place of an existing one, on any storage."""
  state = {f'{part}/{name}': value for part, values in (
      ('params', head.params), ('stats', head.stats))
           for name, value in tree.items(values)}
  with store.put(folder, DESCRIPTION) as place:
    with atomic.replacing(place / TENSORS) as temporary:
      files.write_safetensors(str(temporary), state)
      (place / DESCRIPTION).unlink(missing_ok=True)  # it is of other tensors
    atomic.write_text(place / DESCRIPTION, json.dumps({
        'version': _VERSION, 'kind': head.kind,
        'task': dataclasses.asdict(head.task), 'classes': head.classes,
        'origin': dataclasses.asdict(head.origin),
        'facts': dict(head.facts)}, indent=1, default=str))


def load(folder: str) -> head_lib.Head:
  """Reads what `save` wrote.

  Raises:
    UserError: missing or damaged files, or of a later version.
  """
  if not is_head(folder):
    raise errors.UserError(
        f'{folder} holds no head: {DESCRIPTION} is missing; `dinojax evaluate` '
        'keeps the heads that it trains in heads/ of its results')
  with store.got(folder, (DESCRIPTION, TENSORS)) as place:
    return _load(place)


def _load(place: pathlib.Path) -> head_lib.Head:
  values, source = told.Told.read(place / DESCRIPTION), place / DESCRIPTION
  version, kind = values.get('version', None), values.get('kind', None)
  if version != _VERSION or kind not in tuple(head_lib.KINDS):
    raise errors.UserError(
        f'{source} is of version {told.text(version)}, kind {told.text(kind)}: '
        f'this dinojax reads version {_VERSION} of {", ".join(head_lib.KINDS)}')
  problems = config_lib.Errors()
  task, origin = (
      config_lib.section(cls, values.get(name), path=name, problems=problems)
      for name, cls in (('task', head_lib.KINDS[kind]),
                        ('origin', head_lib.Origin)))
  if problems.messages:
    raise errors.UserError(
        f'{source}: {"; ".join(problems.messages)[:500]}; train the head again')
  state = files.read(str(place / TENSORS))
  shapes = {part: some for part, some in head_lib.shapes_of(
      task, origin.widths).items() if some}
  parts = store.fitted(
      f'{place / TENSORS} does not fit {DESCRIPTION}', state, shapes,
      'train the head again')
  return head_lib.Head(
      task, parts['params'], parts.get('stats', {}), origin,
      tuple(map(str, values.get('classes', ()))),
      dict(values.get('facts', {})))
