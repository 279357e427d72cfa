"""Columns of a source in shards: the same after any stop."""

import functools

from etils import epath
import numpy as np
import pytest

from dinojax.data import parts
from dinojax.features import backbone
from dinojax.features import preprocessing
from dinojax.features import rows
from dinojax.features import spec
from dinojax.features import stream
from dinojax.models import vit
from tests.data import test_pipeline
from tests.interop import cases

CLS = {'cls': spec.FeatureSpec()}


class Stop(Exception):
  """A kill, in the middle of an extraction."""


@functools.cache
def model():
  return backbone.Backbone.of(cases.weights(
      vit.ViTConfig(48, 1, 2, 4, image_px=12)))


def last_cls(outputs):
  layer, = outputs['cls']
  return {'cls': layer['cls']}


def extraction(source, *, weights='w', reduce=last_cls):
  return rows.Extraction(
      model(), weights, source, CLS, preprocessing.Preprocessing(16, 12),
      stream.Reading(4), reduce)


def local(batch):
  return dict(batch.local())


def test_a_stopped_extraction_ends_in_the_same_columns(tmp_path):
  folder, source = epath.Path(tmp_path), test_pipeline.Pictures(23, {2, 11})
  whole = rows.table(extraction(source), local, rows_per_shard=6)
  assert list(whole['index']) == [i for i in range(23) if i not in (2, 11)]
  read = []

  def fails(batch):
    read.extend(row['index'] for row in batch.rows)
    if 16 in read:
      raise Stop
    return local(batch)

  with pytest.raises(Stop):
    rows.table(extraction(source), fails, folder=folder, rows_per_shard=6)
  assert len(list(tmp_path.glob('*/rows-*.npz'))) == 2
  seen, counted = [], []

  def again(batch):
    seen.extend(row['index'] for row in batch.rows)
    return local(batch)

  continued = rows.table(extraction(source), again, folder=folder,
                         rows_per_shard=6, progress=counted.append)
  assert seen == list(range(12, 23)) and sum(counted) == 23
  for name, column in whole.items():
    np.testing.assert_array_equal(column, continued[name])
  # Whoever reads the same reads it from there.
  def never(batch):
    raise AssertionError(batch)
  rows.table(extraction(source), never, folder=folder, rows_per_shard=6)


def test_shards_are_of_what_they_were_made_of():
  source = test_pipeline.Pictures(20, set())
  part = lambda indices: parts.Chosen(source, np.array(indices))

  def other(outputs):
    return last_cls(outputs)

  keys = [extraction(source).key(), extraction(source, weights='v').key(),
          extraction(source, reduce=other).key(),
          extraction(part([1, 2])).key(), extraction(part([1, 3])).key()]
  assert len(set(keys)) == 5 and keys[0] == extraction(source).key()
