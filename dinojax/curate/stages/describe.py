"""Describe: a vector for every image that is alive.

The same stage gives descriptors, by which copies are told, and embeddings, by
which images are alike; a recipe has it under two names.
"""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any

import numpy as np

from dinojax.core import fields
from dinojax.curate import describers
from dinojax.curate import vectors
from dinojax.curate.engines import work
from dinojax.curate.stages import base


@dataclasses.dataclass(frozen=True)
class Settings:
  """Model that describes an image."""

  # model:NAME, as dinojax.load takes it; sscd:FILE, SSCD's published weights;
  # onnx:FILE; pixels:8, mean colours, without weights.
  descriptor: str = ''
  # Size at which SSCD or an ONNX file sees an image: short:288 or square:320;
  # '': the first for ONNX files, the second for SSCD, which is one program.
  resize: str = ''
  resize_px: fields.Positive = 256  # Short side before a model's crop.
  crop_px: fields.Positive = 224  # Square that a model sees.
  batch_size: fields.Positive = fields.free(64)  # Images at a time of a model.


@dataclasses.dataclass(frozen=True)
class Describe(base.Stage):
  """Vectors of the rows that are alive.

  Attributes:
    load: gives the backbone of a name; a function that can be pickled.
  """

  load: Callable = None

  @property
  def describer(self) -> describers.Describer:
    """The describer of the config."""
    c = self.config
    return describers.parse(
        c.descriptor, self.load, where=f'{self.name}.descriptor',
        resize=c.resize, resize_px=c.resize_px, crop_px=c.crop_px,
        batch_size=c.batch_size)

  def settings(self) -> dict[str, Any]:
    """Facts that decide the vectors: of the weights, not their path."""
    return {'describer': dict(self.describer.facts()),
            'reads': dict(self.reads)}

  def phases(self) -> Sequence[work.Phase]:
    """Describes."""
    return (work.Phase(vectors.VECTORS, self.num_shards, self._describe,
                       self.describer.whole),)

  def _describe(self, place: work.Place, index: int) -> work.Counts:
    source = self.images(place, index, np.flatnonzero(
        self.alive(place, index)))
    taken, rows = [np.zeros(0, np.int64)], [np.zeros((0, 0), np.float32)]
    for some, described in self.describer.describe(source):
      taken.append(some)
      rows.append(described)
    taken = np.concatenate(taken)
    vectors.write(place, index, source.rows[taken],
                  np.concatenate(rows[1:] or rows))
    return {'described': len(taken)}
