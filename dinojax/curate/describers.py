"""Descriptors of images: a backbone, SSCD's network, an ONNX file.

Each travels to the process that runs it as a few values, and opens what it
needs there, once.
"""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import functools
import os
from typing import Any, Protocol

import numpy as np

from dinojax.core import errors
from dinojax.curate import decoded
from dinojax.curate import onnx_descriptor
from dinojax.curate import pca_hash
from dinojax.curate import sscd_descriptor
from dinojax.data import record as record_lib
from dinojax.features import backbone as backbone_lib
from dinojax.features import preprocessing
from dinojax.features import spec as spec_lib
from dinojax.features import store
from dinojax.features import stream

_CLS = {'features': spec_lib.FeatureSpec(('cls',), 1, 'final')}

Rows = Iterator[tuple[np.ndarray, np.ndarray]]


class Describer(Protocol):
  """A way to describe images; picklable.

  Attributes:
    whole: True where it uses all cores and devices of a machine.
  """

  whole: bool

  def facts(self) -> Mapping[str, Any]:
    """Values that decide what it gives, as JSON."""

  def describe(self, source: record_lib.Source) -> Rows:
    """Indices [r] and unit rows [r, d] of the images that can be read."""


@dataclasses.dataclass(frozen=True)
class OfBackbone:
  """CLS of a backbone.

  Attributes:
    load: gives the backbone; a function that can be pickled.
    name: as the config names it.
    resize_px, crop_px: see Preprocessing.
    batch_size: images at a time.
  """

  load: Callable[[str], backbone_lib.Backbone]
  name: str
  resize_px: int = 256
  crop_px: int = 224
  batch_size: int = 64

  whole = True

  def facts(self) -> dict[str, Any]:
    """Digest of the weights, and the sizes of images."""
    model = _loaded(self.load, self.name)
    return {'model': store.digest(model.config, model.params),
            'mean': list(model.mean), 'std': list(model.std),
            'resize_px': self.resize_px, 'crop_px': self.crop_px}

  def describe(self, source: record_lib.Source) -> Rows:
    """See Describer."""
    batches = stream.read(
        _loaded(self.load, self.name), _CLS, source,
        preprocessing.Preprocessing(self.resize_px, self.crop_px),
        stream.Reading(self.batch_size))
    for batch in batches:
      stream.warn(batch.bad, source)
      if batch.rows:
        rows = np.asarray(batch.local()['features'][0]['cls'], np.float32)
        yield (np.array([row['index'] for row in batch.rows]),
               rows / np.maximum(np.linalg.norm(
                   rows, axis=1, keepdims=True), 1e-12))


@dataclasses.dataclass(frozen=True)
class OfOnnx:
  """An ONNX file, see onnx_descriptor.

  Attributes:
    path: the file.
    resize: 'short:288' or 'square:320'.
  """

  path: str
  resize: str = 'short:288'

  whole = False

  def facts(self) -> dict[str, Any]:
    """Sum and signature of the file; see Descriptor.facts."""
    return dict(_session(self.path, self.resize).facts)

  def describe(self, source: record_lib.Source) -> Rows:
    """See Describer."""
    session = _session(self.path, self.resize)
    for index, pixels in decoded.read(source):
      yield index, session.describe(pixels)


@dataclasses.dataclass(frozen=True)
class OfSscd:
  """SSCD's published weights, see sscd_descriptor.

  Attributes:
    path: the file.
    resize: 'square:320' or 'short:288'.
    batch_size: images at a time.
  """

  path: str
  resize: str = 'square:320'
  batch_size: int = 64

  whole = True

  def facts(self) -> dict[str, Any]:
    """Sum of the file, and the size of images."""
    return dict(_network(self).facts)

  def describe(self, source: record_lib.Source) -> Rows:
    """See Describer."""
    network = _network(self)
    for index, pixels in decoded.read(
        source, len(os.sched_getaffinity(0))):
      yield index, network.describe(pixels)


@dataclasses.dataclass(frozen=True)
class OfPixels:
  """Mean colours of equal areas, less the mean of the image.

  It needs no weights, and tells copies in their places and colours from other
  images; crops and mirrors it does not.

  Attributes:
    side: areas along each edge.
  """

  side: int

  whole = False

  def facts(self) -> dict[str, Any]:
    """Its name and size."""
    return {'pixels': self.side}

  def describe(self, source: record_lib.Source) -> Rows:
    """See Describer."""
    for index, pixels in decoded.read(source):
      rows = np.stack([pca_hash.areas(x, self.side) for x in pixels])
      rows = rows - rows.mean((1, 2), keepdims=True)
      rows = rows.reshape(len(rows), -1)
      yield index, (rows / np.maximum(np.linalg.norm(
          rows, axis=1, keepdims=True), 1e-6)).astype(np.float32)


def parse(text: str, load: Callable[[str], backbone_lib.Backbone], *,
          where: str, resize: str, resize_px: int, crop_px: int,
          batch_size: int) -> Describer:
  """Reads the words of a config.

  Args:
    text: model:NAME, sscd:FILE, onnx:FILE or pixels:SIDE.
    load: gives the backbone of a name.
    where: name of the key, for messages.
    resize: for ONNX files and SSCD; '': as suits each.
    resize_px, crop_px, batch_size: for backbones.

  Raises:
    UserError: neither of them.
  """
  kind, _, rest = text.partition(':')
  if kind == 'onnx' and rest:
    return OfOnnx(rest, resize or OfOnnx.resize)
  if kind == 'sscd' and rest:
    return OfSscd(rest, resize or OfSscd.resize, batch_size)
  if kind == 'model' and rest:
    return OfBackbone(load, rest, resize_px, crop_px, batch_size)
  if kind == 'pixels' and rest.isdecimal() and 2 <= int(rest) <= 64:
    return OfPixels(int(rest))
  raise errors.UserError(
      f'{where}={text!r} is not understood: give model:NAME, as dinojax.load '
      'takes it, sscd:FILE, onnx:FILE, or pixels:8 (mean colours, without '
      'weights)')


@functools.lru_cache(maxsize=2)
def _loaded(load: Callable, name: str) -> backbone_lib.Backbone:
  return load(name)


@functools.lru_cache(maxsize=2)
def _network(describer: OfSscd) -> sscd_descriptor.Descriptor:
  return sscd_descriptor.Descriptor(
      describer.path, resize=describer.resize,
      batch_size=describer.batch_size)


@functools.lru_cache(maxsize=2)
def _session(path: str, resize: str) -> onnx_descriptor.Descriptor:
  return onnx_descriptor.Descriptor(path, resize=resize)
