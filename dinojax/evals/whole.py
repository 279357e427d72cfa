"""Features of whole images, of several sizes, in few compiled shapes.

An image is resized to the nearest of seven shapes: as long as is asked for,
and 1, 3/4, 2/3 or 9/16 as short. So a feature depends on its image alone,
batches have one size, and processes take part in step.
"""

from collections.abc import Callable, Mapping
from concurrent import futures
import dataclasses
import math

import jax
import numpy as np

from dinojax.augment import photometric
from dinojax.core import errors
from dinojax.core import tree
from dinojax.data import images as images_lib
from dinojax.data import parts
from dinojax.data import record as record_lib
from dinojax.evals import protocol
from dinojax.features import backbone as backbone_lib
from dinojax.features import preprocessing
from dinojax.features import spec as spec_lib
from dinojax.kernels import resample
from dinojax.parallel import mesh as mesh_lib
from dinojax.parallel import processes

_SHORT = (1.0, 3 / 4, 2 / 3, 9 / 16)  # short sides, as parts of the long one
ONCE = (1.0,)


def shapes(long_px: int, unit_px: int) -> tuple[tuple[int, int], ...]:
  """(y, x) in pixels of the shapes, in whole patches.

  Args:
    long_px: length of the long side, rounded to patches.
    unit_px: side of a patch.
  """
  long = max(round(long_px / unit_px), 1)
  flat = [(max(round(long * part), 1) * unit_px, long * unit_px)
          for part in _SHORT]
  return tuple(dict.fromkeys([*flat, *((x, y) for y, x in flat)]))


def nearest(size: tuple[int, int],
            some: tuple[tuple[int, int], ...]) -> int:
  """Number of the (y, x) shape whose aspect is that of a (width, height)."""
  aspect = math.log(size[0] / size[1])
  return int(np.argmin([abs(math.log(x / y) - aspect) for y, x in some]))


def features(job: protocol.Job, source: record_lib.Source,
             specs: Mapping[str, spec_lib.FeatureSpec],
             reduce: Callable[[dict], dict], *, long_px: int | None = None,
             scales: tuple[float, ...] = ONCE) -> protocol.Rows:
  """Arrays of every readable image, see protocol.features.

  Args:
    job: model, and how images are read.
    source: records.
    specs: features by name.
    reduce: makes arrays [b, …] of them, on the devices.
    long_px: length of the long side of whole images; None: squares, as the
      job has them.
    scales: factors of this size, whose arrays are averaged.

  Raises:
    UserError: see protocol.features.
  """
  if scales != ONCE:
    job = dataclasses.replace(
        job, model=Scaled(job.model, scales),
        weights=f'{job.weights} scales {scales}')
  if long_px is None:
    return protocol.features(job, source, specs, reduce)
  sizes = shapes(long_px, job.model.config.side_px)
  which = _shapes_of(job, source, sizes)
  tables = []
  for i, shape in enumerate(sizes):
    chosen = np.flatnonzero(which == i)
    if not len(chosen):
      continue
    exact = dataclasses.replace(job, sizes=preprocessing.Exact(shape))
    table = protocol.features(
        exact, parts.Chosen(source, chosen), specs, reduce, may_be_none=True)
    tables.append(table | {'index': chosen[table['index']]})
  whole = {name: np.concatenate([table[name] for table in tables])
           for name in tables[0]}
  if not len(whole['index']):
    raise errors.UserError(
        f'none of the {len(source)} images of {source.spec} can be read')
  order = np.argsort(whole['index'], kind='stable')
  return {name: column[order] for name, column in whole.items()}


def check(long_px: int | None, config, key: str):
  """Refuses images that are smaller than a patch.

  Args:
    long_px: length of the long side; None: squares.
    config: sizes of the backbone.
    key: its name in the config, for messages.

  Raises:
    UserError: they are.
  """
  if long_px is not None and long_px < config.side_px:
    raise errors.UserError(
        f'{key}={long_px} is smaller than a patch of {config.side_px} pixels: '
        f'set {key}={config.side_px} or more')


def _shapes_of(job: protocol.Job, source: record_lib.Source,
               sizes: tuple[tuple[int, int], ...]) -> np.ndarray:
  """[n] number of each image's shape, by its header."""
  def of_header(index: int) -> int:
    try:
      image = images_lib.open_image(
          source[index].image, max_pixels=job.reading.max_pixels)
      return nearest(image.size, sizes)
    except (images_lib.BadImage, OSError):
      return 0  # it is told where its pixels are read

  with futures.ThreadPoolExecutor(job.reading.num_threads) as threads:
    return np.array(list(threads.map(of_header, range(len(source)))))


class Scaled:
  """A backbone whose features are means over several sizes of an image.

  Images are resized linearly on the devices, as DINO's evaluation does, to
  whole patches: one program for all sizes.
  """

  def __init__(self, model: backbone_lib.Backbone, scales: tuple[float, ...]):
    """Takes factors of the size that images come in."""
    self.config, self.mesh = model.config, model.mesh
    self.mean, self.std = model.mean, model.std
    self.value_range = model.value_range
    self._model, self._scales = model, scales

  def run(self, images: np.ndarray, specs: Mapping[str, spec_lib.FeatureSpec],
          *, pixels: bool = False,
          reduce: Callable[[dict], tree.Tree] | None = None) -> tree.Tree:
    """Means over the scales of what Backbone.run gives."""
    model, scales, unit = self._model, self._scales, self.config.side_px
    named = ('scaled', tuple(specs.items()), reduce, scales,
             (model.mean, model.std) if pixels else ())

    def call(net, images):
      if pixels:
        images = photometric.normalize(images, model.mean, model.std)
      outputs = []
      for scale in scales:
        size = tuple(max(round(side * scale / unit), 1) * unit
                     for side in images.shape[1:3])
        resized = images if size == images.shape[1:3] else (
            resample.resize_linear(images, size).astype(images.dtype))
        out = spec_lib.compute(net, resized, specs)
        outputs.append(reduce(out) if reduce else out)
      return jax.tree.map(lambda *xs: sum(xs) / len(xs), *outputs)

    with mesh_lib.activate(self.mesh):
      rows = processes.to_devices(images, self.mesh)
      return model.net.program(named, call)(model.params, rows)
