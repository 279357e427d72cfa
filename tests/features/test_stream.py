"""The runner of frozen features: which records each batch holds."""

import numpy as np
import pytest

from dinojax.core import errors
from dinojax.data import crops
from dinojax.features import backbone
from dinojax.features import preprocessing
from dinojax.features import spec
from dinojax.features import stream
from dinojax.models import vit
from tests.data import test_pipeline
from tests.interop import cases

SIZES = preprocessing.Preprocessing(16, 12)
CLS = {'cls': spec.FeatureSpec()}


@pytest.fixture(scope='module')
def model():
  return backbone.Backbone.of(cases.weights(
      vit.ViTConfig(48, 1, 2, 4, image_px=12)))


@pytest.mark.parametrize('count', [1, 3])
@pytest.mark.parametrize('section_rows', [None, 7])
def test_processes_share_every_batch(count, section_rows):
  """All have as many batches, and together read every record once."""
  indices = list(range(30, 10, -1))
  shares = [stream._Shares(indices, section_rows, p, count, 6)
            for p in range(count)]
  batches = [list(share.batches()) for share in shares]
  assert len({len(sequence) for sequence in batches}) == 1
  assert len({tuple(ends for _, ends in sequence) for sequence in batches}) == 1
  for number, parts in enumerate(zip(*batches, strict=True)):
    rows = [place for places, _ in parts for place in places]
    assert rows == list(range(rows[0], rows[0] + len(rows)))
    assert len(rows) == 6 or parts[0][1], number
    assert all(len(places) <= shares[0].rows for places, _ in parts)
  assert sorted(i for share in shares for i in share.local_indices()) == sorted(
      indices)
  for share, sequence in zip(shares, batches, strict=True):
    assert list(share.local_indices()) == [
        indices[i] for places, _ in sequence for i in places]
    assert sequence[-1][1] and sum(ends for _, ends in sequence) == (
        3 if section_rows else 1)


def test_a_table_has_every_readable_record_in_order(model):
  source = test_pipeline.Pictures(10, {2})
  batches = stream.read(model, CLS, source, SIZES, stream.Reading(4),
                        indices=[9, 2, 5, 0, 7])
  bad = []

  def columns(batch):
    bad.extend(row['name'] for row in batch.bad)
    layer, = batch.local()['cls']
    return {'cls': layer['cls'], 'image': batch.images[:len(batch.rows)]}

  table = stream.table(model.mesh, batches, columns)
  assert table['index'].tolist() == [0, 5, 7, 9] == table['label'].tolist()
  assert len(bad) == 1
  np.testing.assert_allclose(
      table['cls'], model(model.normalize(table['image'])).cls, atol=1e-5)


def test_a_batch_of_unreadable_images_has_columns_without_rows(model):
  batches = stream.read(model, CLS, test_pipeline.Pictures(3, {0, 1, 2}),
                        SIZES, stream.Reading(2))
  table = stream.table(
      model.mesh, batches,
      lambda batch: {'cls': batch.local()['cls'][0]['cls']})
  assert table['cls'].shape == (0, 48)


@pytest.mark.parametrize('sizes', [
    SIZES, preprocessing.Preprocessing(12, None)])
def test_features_of_a_section_hang_on_nothing_before_it(model, sizes):
  source = test_pipeline.Pictures(10, {4})
  read = lambda start: list(stream.read(
      model, CLS, source, sizes, stream.Reading(4),
      indices=range(start, 10), section_rows=5))
  whole, rest = read(0), read(5)
  ends = [batch.ends_section for batch in whole]
  assert sum(ends) == 2 and ends[-1]
  second = whole[ends.index(True) + 1:]
  for a, b in zip(second, rest, strict=True):
    assert a.rows == b.rows
    np.testing.assert_array_equal(a.images, b.images)


def test_a_model_of_one_process_reads_all_records_in_each(
    model, monkeypatch):
  """In a program of several, whose other processes have models of their own."""
  monkeypatch.setattr(stream.jax, 'process_count', lambda: 2)
  source = test_pipeline.Pictures(10)
  batches = list(stream.read(model, CLS, source, SIZES, stream.Reading(4)))
  assert [row['index'] for batch in batches for row in batch.rows] == list(
      range(10))


def test_rows_of_all_processes_come_together(monkeypatch):
  """Of more rows than are gathered at a time, and not as many in each."""
  counts = (stream._GATHERED_ROWS + 3, 2 * stream._GATHERED_ROWS + 1, 0)
  indices = [np.arange(count) + 10_000 * i for i, count in enumerate(counts)]
  calls = []

  def gather(x):  # what each process would give, in the same order
    if x.ndim == 0:
      return np.array(counts)
    start = len(calls) % 3 * stream._GATHERED_ROWS
    calls.append(x.shape)
    return np.stack([np.resize(np.append(
        rows[start:start + len(x)], np.zeros(len(x), int)), len(x))
        for rows in indices])

  monkeypatch.setattr(stream.multihost_utils, 'process_allgather', gather)
  table = stream._everywhere({'index': indices[0], 'label': indices[0]}, 3)
  for values in table.values():
    np.testing.assert_array_equal(values, np.concatenate(indices))
  assert set(calls) == {(stream._GATHERED_ROWS,)}


def test_whole_images_need_one_process(model, monkeypatch):
  monkeypatch.setattr(stream, 'takers', lambda mesh: (2, 0))
  with pytest.raises(errors.UserError, match='cut them by --crop_px'):
    stream.read(model, CLS, test_pipeline.Pictures(3),
                preprocessing.Preprocessing(12, None))


def test_images_that_wait_are_bounded():
  rows = [{'image': np.zeros((1 + i % 9, 10, 1), np.uint8), 'place': i}
          for i in range(200)]
  held, most, seen = 0, 0, []

  def counted():
    nonlocal held, most
    for row in rows:
      held += row['image'].nbytes
      most = max(most, held)
      yield row

  for batch in stream.group_by_size(counted(), 8, max_bytes=600):
    held -= sum(row['image'].nbytes for row in batch)
    assert len({row['image'].shape for row in batch}) == 1
    assert len(batch) <= 8
    seen += [row['place'] for row in batch]
  assert sorted(seen) == list(range(200))
  assert most <= 600 + 90


def test_sizes_of_whole_images_are_few():
  rng = np.random.default_rng(0)
  sizes = {crops.whole_size(tuple(rng.integers(1, 3000, 2)), short_px=256,
                            patch_px=16) for _ in range(20_000)}
  assert len(sizes) <= 129
  assert max(x * y for x, y in sizes) <= 256 * crops.max_patches(256, 16)
  assert crops.whole_size((1000, 750), short_px=256, patch_px=14) == (336, 252)


