"""Features of every image of a source, as a table, in resumable shards.

A shard is a function of the settings and its number: batches begin anew in
each, so that a killed run ends with the same bytes as any other.
"""

from collections.abc import Callable
import contextlib
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dinojax.core import errors
from dinojax.core import paths
from dinojax.core import text
from dinojax.data import record as record_lib
from dinojax.features import backbone as backbone_lib
from dinojax.features import preprocessing
from dinojax.features import spec as spec_lib
from dinojax.features import store as store_lib
from dinojax.features import stream
from dinojax.features import tables
from dinojax.parallel import mesh as mesh_lib

FEATURES = ('cls', 'patches', 'cls+mean')
_VERSION = 1
_MAX_IMAGES_PER_SHARD = 4096
_MAX_SHARD_BYTES = 2**28


@dataclasses.dataclass(frozen=True)
class Choice:
  """Features that are stored of an image, and the sizes it is read at.

  Attributes:
    features: 'cls', 'patches', or 'cls+mean': CLS and the mean patch.
    layers: how many of the last are joined; the mean patch is of the last.
    dtype: 'float32' or 'float16'.
    resize_px: see Preprocessing.
    crop_px: see Preprocessing.
  """

  features: str = 'cls'
  layers: int = 1
  dtype: str = 'float32'
  resize_px: int = 256
  crop_px: int | None = 224

  @property
  def preprocessing(self) -> preprocessing.Preprocessing:
    """Sizes of the images."""
    return preprocessing.Preprocessing(self.resize_px, self.crop_px)

  @property
  def spec(self) -> spec_lib.FeatureSpec:
    """Outputs and layers of the backbone that are read."""
    outputs = {'cls': ('cls',), 'patches': ('patches',),
               'cls+mean': ('cls', 'mean')}
    return spec_lib.FeatureSpec(
        outputs[self.features], self.layers,
        'final' if self.layers == 1 else 'normed')

  def check(self, config: Any):
    """Refuses what the model cannot do.

    Raises:
      UserError: sizes or layers that do not fit.
    """
    self.preprocessing.check(config)
    if not 1 <= self.layers <= config.depth:
      raise errors.UserError(
          f'--layers={self.layers} are not in this model of {config.depth}: '
          f'set it to 1 … {config.depth}')
    whole = (8 * config.side_px,) * 2
    grids = {config.layer_grid(whole, i)
             for i in self.spec.indices(config.depth)}
    if self.features == 'patches' and len(grids) > 1:
      raise errors.UserError(
          f'--layers={self.layers} of a ConvNeXt have maps of different '
          'sizes: set it to 1, or --features=cls')

  def images_per_shard(self, config: Any) -> int:
    """Images of a shard, so that it fits well in memory."""
    width = sum(self.spec.widths(config))
    if self.features == 'cls+mean':
      width += config.embed_dim
    if self.features == 'patches':
      width *= self.preprocessing.max_patches(config)
    row_bytes = width * np.dtype(self.dtype).itemsize
    return max(min(_MAX_IMAGES_PER_SHARD, _MAX_SHARD_BYTES // row_bytes), 1)


@dataclasses.dataclass(frozen=True)
class _Joined:
  """Layers joined to [b, d] or [b, p, d], on the device."""

  features: str
  dtype: str

  def __call__(self, outputs: dict) -> jax.Array:
    layers = outputs['features']
    if self.features == 'patches':
      out = jnp.concatenate([layer['patches'] for layer in layers], axis=-1)
    else:
      out = spec_lib.probe_input(
          layers, len(layers), self.features == 'cls+mean')
    return out.astype(self.dtype)


@dataclasses.dataclass(frozen=True)
class Result:
  """Outcome of `embed`: rows in the table, [name, reason] of bad images."""

  num_rows: int
  bad: list[list[str]]


def embed(model: backbone_lib.Backbone, source: record_lib.Source, out: str,
          choice: Choice, *, model_name: str = '',
          reading: stream.Reading = stream.AS_USUAL,
          images_per_shard: int | None = None,
          progress: Callable[[int], None] = lambda done: None,
          say: Callable[[str], None] = lambda line: None) -> Result:
  """Writes features of all images of a source; a stopped run continues.

  Args:
    model: the backbone.
    source: records.
    out: .npz, .parquet or .csv.
    choice: features that are stored.
    model_name: kept with the result.
    reading: how images are read.
    images_per_shard: None: 4096, fewer where features are large.
    progress: called with the number of images that are done.
    say: called with sentences for the user.

  Raises:
    UserError: sizes that do not fit, another run's shards, no readable
      image, features that are not finite.
  """
  out = paths.expand(out)
  tables.check(out, choice.features)
  if len({device.process_index for device in model.mesh.devices.flat}) > 1:
    raise errors.UserError(
        'a table is written by one process, and the devices of this model are '
        'those of several: load it on the devices of one')
  reading = dataclasses.replace(
      reading, value_range=tuple(reading.value_range or model.value_range))
  choice.check(model.config)
  per_shard = images_per_shard or choice.images_per_shard(model.config)
  store = store_lib.Store(
      out, settings(model, source, choice, reading, model_name, per_shard),
      num_rows=len(source), rows_per_shard=per_shard)
  if store.is_finished:
    store.remove()
    say(f'{out} is complete: nothing to do')
    return Result(*tables.summary(out))
  for remark in choice.preprocessing.remarks(model.config):
    say(remark)
  with store.held(lambda: _check_names(store, source)):
    start = _continue(store, source, say)
    progress(start)
    batches = stream.read(
        model, {'features': choice.spec}, source, choice.preprocessing,
        reading, indices=range(start, len(source)), section_rows=per_shard,
        reduce=_Joined(choice.features, _device_dtype(model, choice)))
    with contextlib.closing(batches):
      _fill(store, batches, choice, model.config, progress)
    return _finish(store, source)


def _device_dtype(model: backbone_lib.Backbone, choice: Choice) -> str:
  """The dtype that features have before they are fetched.

  A device that results are fetched from rounds them to the choice's dtype. A
  CPU need not, and XLA's compiler has no float16 for those without F16C.
  """
  on_cpu = mesh_lib.platform(model.mesh) == 'cpu'
  return 'float32' if on_cpu else choice.dtype


def settings(model: backbone_lib.Backbone, source: record_lib.Source,
             choice: Choice, reading: stream.Reading, model_name: str,
             images_per_shard: int) -> dict:
  """All that changes the result, but for rounding."""
  return {'version': _VERSION,
          **store_lib.key(model, source, name=model_name),
          'max_pixels': reading.max_pixels,
          'value_range': list(reading.value_range),
          **dataclasses.asdict(choice), 'images_per_shard': images_per_shard}


def _fill(store: store_lib.Store, batches, choice: Choice, config: Any,
          progress: Callable[[int], None]):
  """Computes and keeps the shards that are missing."""
  shard, number = _Shard(choice, config), store.num_done
  for batch in batches:
    shard.add(batch)
    progress(store.rows(number).start + shard.count)
    if batch.ends_section:
      store.write(number, shard.columns())
      shard, number = _Shard(choice, config), number + 1


class _Shard:
  """Rows of one shard as they come in; `count` of them so far."""

  def __init__(self, choice: Choice, config: Any):
    self._choice, self._config = choice, config
    self._rows, self._bad, self.count = [], [], 0

  def add(self, batch: stream.Batch):
    """Keeps features of the readable images, and names of the others.

    Raises:
      UserError: features that are not finite.
    """
    self.count += len(batch.rows) + len(batch.bad)
    self._bad += [[_plain(row['name']), row['problem']] for row in batch.bad]
    if not batch.rows:
      return
    with np.errstate(over='ignore'):  # infinities are refused below
      values = np.asarray(batch.local(), self._choice.dtype)
    grid = self._grid(batch.images.shape[1:3])
    for row, value in zip(batch.rows, values, strict=True):
      name = _plain(row['name'])
      if not np.isfinite(value).all():
        fix = ('check the weights' if self._choice.dtype == 'float32'
               else 'set --dtype=float32')
        raise errors.UserError(
            f'features of {text.printable(name)} are not finite: {fix}')
      self._rows.append((row['index'], name, row['label'], grid, value))

  def _grid(self, image_px: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of the patches of an image."""
    if self._choice.spec.place == 'final':
      return self._config.grid(image_px)
    return self._config.layer_grid(image_px, self._config.depth - 1)

  def columns(self) -> tables.Shard:
    """All rows in the order of the source."""
    rows = sorted(self._rows, key=lambda row: row[0])
    index, names, labels, grids, values = (
        zip(*rows, strict=True) if rows else ((),) * 5)
    patches = self._choice.features == 'patches'
    together = (np.concatenate if patches and self._choice.crop_px is None
                else np.stack)
    out = {
        'names': np.array(names, np.str_),
        'labels': np.array(labels, np.int64),
        'features': (together(values) if values
                     else np.zeros((0,), self._choice.dtype)),
        'bad': np.array(self._bad, np.str_).reshape(-1, 2),
        'index': np.array(index, np.int64)}
    if patches:
      out['grids'] = np.array(grids, np.int32).reshape(-1, 2)
    return out


def _continue(store: store_lib.Store, source: record_lib.Source,
              say: Callable[[str], None]) -> int:
  """The number of images that are done."""
  if not store.num_done:
    return 0
  start = store.rows(store.num_done - 1).stop
  say(f'continuing after {start} of {len(source)} images: '
      f'{store.num_done} of {store.count} shards are there')
  return start


def _check_names(store: store_lib.Store, source: record_lib.Source):
  """Names an image that moved; the digest of the settings knows of all.

  Raises:
    UserError: the source has changed since.
  """
  if not store.num_done:
    return
  last = tables.read_shard(str(store.path(store.num_done - 1)))
  for place in {0, len(last['index']) - 1} if len(last['index']) else ():
    index, name = int(last['index'][place]), last['names'][place]
    if _plain(source[index].name) != name:
      raise errors.UserError(
          f'image {index} of {source.spec} was {name} and is '
          f'{source[index].name}: files were added or removed; delete '
          f'{store.folder} to start again')


def _finish(store: store_lib.Store, source: record_lib.Source) -> Result:
  """Joins the shards, and deletes them.

  Raises:
    UserError: no image could be read.
  """
  result = Result(0, [])
  for number in range(store.count):
    count, bad = tables.summary(str(store.path(number)))
    result = Result(result.num_rows + count, result.bad + bad)
  if not result.num_rows:
    store.remove()
    raise errors.UserError(
        f'none of the {len(source)} images of {source.spec} can be read, the '
        f'first ({text.printable(result.bad[0][0])}) because: '
        f'{result.bad[0][1]}; check the source')
  store.join(source.classes)
  store.remove()
  return result


def _plain(name: str) -> str:
  """Names of files may hold bytes that are not text."""
  return name.encode('utf-8', 'backslashreplace').decode()
