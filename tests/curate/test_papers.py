"""The recipes of the two papers, whole and small, and sheets to look at."""

import json

import numpy as np
from PIL import Image
import pytest

from dinojax.configs.curate import lvd142m
from dinojax.configs.curate import lvd1689m
from dinojax.core import errors
from dinojax.curate import recipe
from dinojax.curate import selections
from dinojax.curate import splitting
from dinojax.curate import tables
from dinojax.data import sources
from dinojax.runs import curation
from tests.curate import test_recipe

pile, benchmark = test_recipe.pile, test_recipe.benchmark
folder_of = test_recipe.folder_of


def of_dinov2(pile, benchmark):
  c = lvd142m.get_config('smoke')
  c.ingest.pools, c.ingest.rows_per_shard = (f'folder:{pile}',), 50
  c.hash.bits = 0
  c.decontaminate.references = (f'folder:{benchmark}',)
  c.retrieve.samples = ((f'folder:{benchmark}', 3),)
  c.retrieve.clusters = ((f'folder:{benchmark}', 4),)
  c.retrieve.num_clusters, c.retrieve.more_than = 3, 0
  return c


def of_dinov3(pile, benchmark):
  c = lvd1689m.get_config('smoke')
  c.ingest.pools, c.ingest.rows_per_shard = (f'folder:{pile}',), 50
  c.cluster.levels, c.cluster.split = (40, 12, 8, 4, 2), 5
  c.sample.images = 60
  c.retrieve.samples = ((f'folder:{benchmark}', 4),)
  return c


def curate(config, workdir, **more):
  return curation.curate(curation.Request(
      config, str(workdir), workers=1, **more))


def test_dinov2s_recipe_takes_what_resembles_the_queries(
    pile, benchmark, tmp_path):
  curate(of_dinov2(pile, benchmark), tmp_path)
  chosen, = (tables.read(path) for path in (folder_of(
      tmp_path, 'retrieve') / selections.SELECTED).glob('*.parquet'))
  mixture = json.loads((tmp_path / 'mixture.json').read_text())
  (spec, weight), other = mixture['train']
  assert weight == len(chosen['row']) and other == ['photos:validation', 1.0]
  assert len(sources.open_source(f'arrayrecord:{tmp_path}/' + spec.partition(
      ':')[2])) == weight
  # The benchmark's own images are gone, though they are the queries.
  assert chosen['score'][chosen['cluster'] < 0].max() < 0.95


def test_sheets_show_queries_with_what_they_find(pile, benchmark, tmp_path):
  c = of_dinov2(pile, benchmark)
  with pytest.raises(errors.UserError, match='add --stage=retrieve'):
    curate(c, tmp_path, inspect=3)
  line = curate(c, tmp_path, until='retrieve', inspect=3)
  assert line.count('look: ') == 2
  for number, tiles in ((0, 7), (1, 2)):
    sheet = np.asarray(Image.open(tmp_path / f'inspect-{number}.png'))
    assert sheet.shape[0] > 200 and sheet.shape[1] > 114 * tiles
    assert sheet[60, 60].std() < 60  # a query at the left
    assert len(np.unique(sheet.reshape(-1, 3), axis=0)) > 1000


@pytest.mark.slow  # 13 s; test_splitting.py divides a level of its own
def test_dinov3s_recipe_has_five_levels_of_which_one_is_divided(
    pile, benchmark, tmp_path, monkeypatch):
  monkeypatch.setattr(splitting, '_PART', 2_000)
  curate(of_dinov3(pile, benchmark), tmp_path)
  folder = folder_of(tmp_path, 'cluster')
  assert len(list((folder / 'divided').glob('*.centroids.npy'))) > 1
  parts = [tables.read(path) for path in sorted(
      (folder / 'assigned').glob('*.parquet'))]
  labels = [np.concatenate([part[f'level_{i}'] for part in parts])
            for i in range(1, 6)]
  assert len(np.unique(labels[0])) == 40  # 8 clusters, each in 5
  for lower, upper in zip(labels, labels[1:], strict=False):
    for number in np.unique(lower):  # a cluster lies in one of the next
      assert len(np.unique(upper[lower == number])) == 1
  # Rows are with the rows that are near them.
  vectors = [np.load(path) for path in sorted(folder_of(
      tmp_path, 'embed').rglob('*.vectors.npy'))]
  x = np.concatenate(vectors).astype(np.float32)
  centroids = np.concatenate([np.load(path) for path in sorted(
      (folder / 'divided').glob('*.centroids.npy'))])
  distance = np.concatenate([part['distance'] for part in parts])
  rows = np.concatenate([part['row'] for part in parts])
  assert (np.diff(rows) > 0).all()
  np.testing.assert_allclose(
      np.square(x - centroids[labels[0]]).sum(1), distance, rtol=1e-3,
      atol=1e-4)
  for number in range(40):
    np.testing.assert_allclose(x[labels[0] == number].mean(0),
                               centroids[number], atol=1e-3)
  mixture = json.loads((tmp_path / 'mixture.json').read_text())
  assert [weight for _, weight in mixture['train']] == [0.2, 0.7, 0.1]
  assert mixture['homogeneous'] == [['photos:validation', 0.1]]


@pytest.mark.parametrize('changes', [
    {'levels': (41, 12)}, {'levels': ()},
    {'levels': (40, 12), 'resamples': (1, 0)}])
def test_levels_that_cannot_be_divided_are_named(
    pile, benchmark, tmp_path, changes):
  c = of_dinov3(pile, benchmark)
  c.cluster.update(changes)
  with pytest.raises(errors.UserError, match='cluster.split=5 with'):
    curate(c, tmp_path)


@pytest.mark.parametrize('module', [lvd142m, lvd1689m])
def test_other_arguments_are_named(module):
  with pytest.raises(errors.UserError, match=':tiny is not known'):
    module.get_config('tiny')
  settings = recipe.read(module.get_config())
  assert settings.stages == module.STAGES
