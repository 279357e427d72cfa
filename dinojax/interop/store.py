"""A converted model on disk: model.safetensors and model.json.

Tensors carry our own names, under `params/` and `heads/NAME/`; `entries/` are
what another library's file held besides, so that it can be written again.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import dataclasses
import json
import os
import pathlib
import tempfile
from typing import Any

from etils import epath

from dinojax.core import atomic
from dinojax.core import config as config_lib
from dinojax.core import errors
from dinojax.core import tree
from dinojax.interop import files
from dinojax.interop import kinds
from dinojax.interop import reading
from dinojax.interop import sizes
from dinojax.interop import told
from dinojax.models import convnext
from dinojax.models import heads
from dinojax.models import vit

TENSORS, DESCRIPTION = 'model.safetensors', 'model.json'
_KINDS = {'vit': vit.ViTConfig, 'convnext': convnext.ConvNeXtConfig}
_FAMILIES = ('meta', 'hf', 'timm', 'dinojax')
_VERSION = 1


def is_ours(folder: str) -> bool:
  """Tells whether a folder holds a model that `save` wrote."""
  return (epath.Path(folder) / DESCRIPTION).exists()


def save(folder: str, weights: reading.Weights):
  """Writes a model in the place of an existing one.

  What fails while tensors are written leaves the old model; a kill after that
  may leave none, never the tensors of one with the description of another.
  """
  place = pathlib.Path(folder)
  place.mkdir(parents=True, exist_ok=True)
  state = {f'params/{name}': value
           for name, value in tree.items(weights.params)}
  state |= {f'entries/{name}': value
            for name, value in weights.entries.items()}
  for part, head in weights.heads.items():
    state |= {f'heads/{part}/{name}': value
              for name, value in tree.items(head.params)}
  kind, = (k for k, cls in _KINDS.items() if isinstance(weights.config, cls))
  with atomic.replacing(place / TENSORS) as temporary:
    files.write_safetensors(str(temporary), state)
    (place / DESCRIPTION).unlink(missing_ok=True)  # it is of other tensors
  atomic.write_text(place / DESCRIPTION, json.dumps({
      'version': _VERSION, 'kind': kind, 'family': weights.family,
      'config': dataclasses.asdict(weights.config),
      'heads': {name: dataclasses.asdict(head.config)
                for name, head in weights.heads.items()},
      'mean': weights.mean, 'std': weights.std,
      **({'value_range': weights.value_range} if weights.value_range else {}),
  }, indent=1))


def load(folder: str) -> reading.Weights:
  """Reads what `save` wrote, of a disk or an object store.

  Raises:
    UserError: missing or damaged files, or of a later version.
  """
  if not is_ours(folder):
    raise errors.UserError(
        f'{folder} holds no model: {DESCRIPTION} is missing; convert weights '
        'with `dinojax convert import`')
  with got(folder, (DESCRIPTION, TENSORS)) as place:
    return _load(place)


@contextlib.contextmanager
def put(place: epath.PathLike, last: str) -> Iterator[pathlib.Path]:
  """A folder on a disk, whose files are then in `place`, wherever that is.

  Args:
    place: folder of a disk or an object store.
    last: name of the file without which the others count for nothing.
  """
  place = epath.Path(place)
  if atomic.is_local(place):
    place.mkdir(parents=True, exist_ok=True)
    yield pathlib.Path(os.fspath(place))
    return
  with tempfile.TemporaryDirectory() as folder:
    yield pathlib.Path(folder)
    for path in sorted(pathlib.Path(folder).rglob('*'),
                       key=lambda path: path.name == last):
      if path.is_file():
        target = place / path.relative_to(folder).as_posix()
        target.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_bytes(target, path.read_bytes())


@contextlib.contextmanager
def got(folder: epath.PathLike, names: Sequence[str]
        ) -> Iterator[pathlib.Path]:
  """Files of a folder on a disk: where they are, or copies of them."""
  if atomic.is_local(folder):
    yield pathlib.Path(os.fspath(folder))
    return
  with tempfile.TemporaryDirectory() as here:
    for name in names:
      (epath.Path(folder) / name).copy(epath.Path(here) / name)
    yield pathlib.Path(here)


def _load(place: pathlib.Path) -> reading.Weights:
  values = told.Told.read(place / DESCRIPTION)
  version, kind = values.get('version', None), values.get('kind', None)
  if version != _VERSION or kind not in tuple(_KINDS):
    raise errors.UserError(
        f'{place / DESCRIPTION} is of version {told.text(version)}, kind '
        f'{told.text(kind)}: this dinojax reads version {_VERSION} of '
        f'{", ".join(_KINDS)}')
  source = str(place / DESCRIPTION)
  config = _built(_KINDS[kind], values.get('config'), f'{source}: config')
  mean, std = values.numbers('mean'), values.numbers('std', positive=True)
  value_range = values.numbers('value_range', ())
  if value_range and (len(value_range) != 2
                      or value_range[0] == value_range[1]):
    raise errors.UserError(
        f'{source}: value_range is {told.text(list(value_range))} and not '
        'black and white, two different numbers')
  state = files.read(str(place / TENSORS))
  pick = lambda prefix: {
      key.removeprefix(prefix): value for key, value in state.items()
      if key.startswith(prefix)}
  params = _tree(place, pick('params/'), reading.shapes(config))
  loss_heads = {}
  options = values.inner('heads')
  for name in options:
    head = _built(heads.HeadConfig, options.get(name),
                  f'{source}: heads.{name}')
    shapes = reading.head_shapes(head, config.embed_dim)
    loss_heads[name] = reading.Head(
        head, _tree(place, pick(f'heads/{name}/'), shapes))
  return reading.Weights(
      config, params, pick('entries/'), values.name('family', _FAMILIES),
      loss_heads, mean, std, value_range)


def _built(kind: type, values: Any, source: str) -> Any:
  """A dataclass of what a file says, every value looked at."""
  if not isinstance(values, Mapping):
    raise errors.UserError(
        f'{source} is {told.text(values)}: convert the weights again')
  problems = config_lib.Errors()
  made = config_lib.section(kind, values, path='', problems=problems)
  if problems.messages:
    raise errors.UserError(
        f'{source}: {"; ".join(problems.messages)[:500]}; convert the weights '
        'again')
  sizes.check(made, source)
  return made


def fitted(source: str, flat: kinds.State, shapes: tree.Tree,
           fix: str) -> tree.Tree:
  """Tensors of a file as a tree of known shapes.

  Args:
    source: names of the file and of its description, for messages.
    flat: tensors by path.
    shapes: the tree.
    fix: advice, where tensors are others.

  Raises:
    UserError: tensors that are missing, spare, or of another shape.
  """
  wanted = dict(tree.items(shapes))
  wrong = [name for name in {**wanted, **flat} if name not in flat
           or name not in wanted or flat[name].shape != wanted[name].shape
           or flat[name].dtype.kind != 'f']
  if wrong:
    raise errors.UserError(
        f'{source}: {", ".join(sorted(wrong)[:5])}; {fix}')
  return tree.map_with_name(lambda name, _: flat[name], shapes)


def _tree(place: pathlib.Path, flat: kinds.State,
          shapes: tree.Tree) -> tree.Tree:
  return fitted(f'{place / TENSORS} does not fit {DESCRIPTION}', flat, shapes,
                'convert the weights again')
