"""A recipe from a pile of images to records, with planted copies in the pile.
"""

import io
import json
import pathlib

import numpy as np
from PIL import Image
import pytest

from dinojax.configs.curate import folder as folder_config
from dinojax.core import errors
from dinojax.curate import recipe
from dinojax.curate import selections
from dinojax.curate import tables
from dinojax.curate import verdicts
from dinojax.curate.engines import work
from dinojax.data import sources
from dinojax.runs import curation
from dinojax.runs.report import curation as report

NUM = 130  # pictures that differ


def picture(seed):
  """Soft spots of many colours, 96 × 80 pixels."""
  low = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), np.uint8)
  return Image.fromarray(low).resize((96, 80), Image.Resampling.BICUBIC)


def encoded(image, kind='PNG', **options):
  out = io.BytesIO()
  image.save(out, kind, **options)
  return out.getvalue()


def write_pile(folder):
  """Files by the kind of what is planted."""
  folder.mkdir()
  put = lambda name, data: (folder / name).write_bytes(data)
  for i in range(NUM):
    put(f'original-{i:03d}.png', encoded(picture(i)))
  for i in range(6):
    put(f'same-{i}.png', encoded(picture(i)))
    put(f'anew-{i}.bmp', encoded(picture(10 + i), 'BMP'))
    put(f'jpeg-{i}.jpg', encoded(picture(20 + i), 'JPEG', quality=60))
    put(f'small-{i}.png', encoded(picture(30 + i).resize((48, 40))))
  for i in range(3):
    put(f'blank-{i}.png', encoded(Image.new('RGB', (64, 64), (i * 90,) * 3)))
    put(f'bad-{i}.png', encoded(picture(i))[:60])
    put(f'tiny-{i}.png', encoded(picture(40 + i).resize((9, 9))))


@pytest.fixture(scope='module')
def pile(tmp_path_factory):
  folder = tmp_path_factory.mktemp('pile') / 'images'
  write_pile(folder)
  return folder


def config(pile, **changes):
  c = folder_config.get_config(str(pile))
  c.ingest.rows_per_shard = 32
  c.filter.min_side_px = 16
  c.hash.fit_images = 1000
  c.cluster.levels, c.cluster.iterations = (12, 3), 5
  c.sample.images = 30
  c.materialize.images_per_shard = 8
  for key, value in changes.items():
    section, _, name = key.partition('__')
    c[section][name] = value
  return c


def curate(pile, workdir, capsys=None, **changes):
  return curation.curate(curation.Request(
      config(pile, **changes), str(workdir), workers=1))


@pytest.fixture(scope='module')
def finished(pile, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('work')
  return workdir, curate(pile, workdir)


def folder_of(workdir, stage):
  inner, = (workdir / stage).iterdir()
  return inner


def rows(workdir, stage):
  """Verdicts of a stage, by the names of the images."""
  folder = folder_of(workdir, stage) / verdicts.ROWS
  names = [name for path in sorted((folder_of(
      workdir, 'ingest') / verdicts.ROWS).glob('*.parquet'))
           for name in tables.read(path, ['name'])['name']]
  parts = [tables.read(path) for path in sorted(folder.glob('*.parquet'))]
  return {name: (bool(alive), reason) for name, alive, reason in zip(
      names, np.concatenate([p['alive'] for p in parts]),
      sum((p['reason'] for p in parts), []), strict=True)}


def test_every_planted_image_meets_its_fate(finished):
  workdir, _ = finished
  reasons = {stage: {name: why for name, (_, why) in rows(
      workdir, stage).items() if why} for stage in (
          'ingest', 'filter', 'hash', 'dedup')}
  of = lambda stage, kind: {name for name in reasons[stage]
                            if name.startswith(kind)}
  assert len(of('ingest', 'bad')) == len(reasons['ingest']) == 3
  assert all('truncated' in why for why in reasons['ingest'].values())
  assert len(of('filter', 'blank')) == len(of('filter', 'tiny')) == 3
  assert len(reasons['filter']) == 6
  # Equal pixels by their sums; a hash of so few images is a poor one, so that
  # descriptors find what was stored anew with losses, or resized.
  assert len(reasons['hash']) == len(reasons['dedup']) == 12
  assert len(of('dedup', 'small')) == 6
  left = [name for name, (alive, _) in rows(workdir, 'dedup').items() if alive]
  assert len(left) == NUM


def test_descriptors_find_what_hashes_are_not_asked_for(pile, tmp_path):
  curate(pile, tmp_path, hash__bits=0)
  assert sum(bool(why) for _, why in rows(tmp_path, 'hash').values()) == 12
  left = [name for name, (alive, _) in rows(tmp_path, 'dedup').items() if alive]
  assert len(left) == NUM


def test_training_reads_the_sample(finished, pile):
  workdir, line = finished
  assert f'--config.data.train=curated:{workdir} ' in line
  mixture = json.loads((workdir / 'mixture.json').read_text())
  (spec, weight), = mixture['train']
  assert weight == 30 and mixture['homogeneous'] == []
  source = sources.open_source(
      f'arrayrecord:{workdir}/{spec.removeprefix("arrayrecord:")}')
  names = [record.name for record in source]
  assert len(set(names)) == len(names) == 30
  assert names != sorted(names)  # shuffled
  for record in source:
    assert record.image == (pile / record.name).read_bytes()
  table = [tables.read(path) for path in sorted((folder_of(
      workdir, 'materialize') / 'records-sample').glob('*.parquet'))]
  assert sum((part['name'] for part in table), []) == names
  assert all('cluster' in part for part in table)


def test_clusters_are_drawn_from_evenly(finished):
  workdir, _ = finished
  place = folder_of(workdir, 'sample') / selections.SELECTED
  chosen, = (tables.read(path) for path in place.glob('*.parquet'))
  assigned = [tables.read(path) for path in sorted((folder_of(
      workdir, 'cluster') / 'assigned').glob('*.parquet'))]
  row, top = (np.concatenate([part[name] for part in assigned])
              for name in ('row', 'level_2'))
  sizes = np.bincount(top, minlength=3)
  taken = np.bincount(top[np.isin(row, chosen['row'])], minlength=3)
  unsaturated = taken[taken < sizes]
  assert taken.sum() == 30 and np.ptp(unsaturated) <= 1


def contents(folder):
  return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(
      pathlib.Path(folder).rglob('*')) if p.is_file() and p.name != 'lock'}


def test_twice_gives_equal_bytes_and_nothing_is_done_twice(
    finished, pile, tmp_path, capsys):
  workdir, _ = finished
  curate(pile, tmp_path)
  want = contents(workdir)
  assert contents(tmp_path) == want
  for name, data in want.items():
    if name.endswith('.parquet'):
      assert str(pile).encode() not in data, name
  capsys.readouterr()
  curate(pile, tmp_path)
  lines = capsys.readouterr().out.splitlines()
  assert len(lines) == 9 and all('(kept)' in line for line in lines)


def test_a_changed_option_reaches_what_depends_on_it(finished, pile, capsys):
  workdir, _ = finished
  capsys.readouterr()
  curate(pile, workdir, sample__images=20)
  lines = capsys.readouterr().out.splitlines()
  done = [line.partition(':')[0] for line in lines if '(kept)' not in line]
  assert done == ['sample', 'materialize']
  curate(pile, workdir)  # other tests find one folder for each stage
  for stage in done:
    for inner in (workdir / stage).iterdir():
      manifest = json.loads((inner / 'manifest.json').read_text())
      if 20 in manifest['counts'].values():
        for path in sorted(inner.rglob('*'), reverse=True):
          path.rmdir() if path.is_dir() else path.unlink()
        inner.rmdir()


def test_shards_change_no_choice(finished, pile, tmp_path):
  workdir, _ = finished
  curate(pile, tmp_path, ingest__rows_per_shard=1000)
  read = lambda folder: tables.read(next((folder_of(
      folder, 'sample') / selections.SELECTED).glob('*.parquet')))
  for name, values in read(workdir).items():
    np.testing.assert_array_equal(values, read(tmp_path)[name])


@pytest.mark.parametrize('changes, words', [
    ({'ingest__pools': ()}, 'ingest.pools is empty'),
    ({'describe__descriptor': ''}, 'describe.descriptor='),
    ({'embed__descriptor': 'onnx:/no/file'}, 'cannot be read'),
    ({'cluster__levels': (12, 12)}, 'level 2 asks for 12 clusters of 12'),
    ({'cluster__levels': (500,)}, 'level 1 asks for 500 clusters of 130'),
    ({'cluster__resamples': (1,)}, 'differ in length'),
    ({'hash__bits': 128}, 'cannot be learned from 154 images'),
    ({'hash__bits': 65}, 'hash.bits=65 is not a length'),
    ({'dedup__threshold': 1.5}, r'dedup.threshold=1.5 is not in'),
    ({'dedup__threshold': 0.9}, 'dedup.floor=0.95 is above'),
    ({'filter__refused': ('/no/list',)}, 'list of refused hosts')])
def test_wrong_values_are_named(pile, tmp_path, changes, words):
  with pytest.raises(errors.UserError, match=words):
    curate(pile, tmp_path, **changes)


@pytest.mark.parametrize('stages, words', [
    (('filter',), 'stage filter reads what ingest gives'),
    (('ingest', 'dedup'), 'reads what describe or embed gives'),
    (('ingest', 'ingest'), 'ingest twice'),
    (('ingest', 'hsah'), 'did you mean hash')])
def test_wrong_stages_are_named(pile, tmp_path, stages, words):
  c = config(pile)
  c.stages = stages
  with pytest.raises(errors.UserError, match=words):
    recipe.chain(recipe.read(c), None)


@pytest.fixture(scope='module')
def benchmark(tmp_path_factory):
  """Copies of five pictures of the pile, and one that it does not have."""
  folder = tmp_path_factory.mktemp('benchmark') / 'images'
  folder.mkdir()
  for i in range(50, 55):
    (folder / f'{i}.jpg').write_bytes(encoded(
        picture(i).resize((64, 54)), 'JPEG', quality=80))
  (folder / 'other.png').write_bytes(encoded(picture(999)))
  return folder


STAGES = ('ingest', 'filter', 'describe', 'dedup', 'decontaminate', 'retrieve',
          'cluster', 'sample', 'materialize')


def full(pile, benchmark, **changes):
  c = config(pile, **changes)
  c.stages = changes.get('stages', STAGES)
  c.decontaminate.references = (f'folder:{benchmark}',)
  c.decontaminate.threshold = 0.97
  c.dedup.floor = 0.95
  c.retrieve.samples = ((f'folder:{benchmark}', 3),)
  c.retrieve.clusters = ((f'folder:{benchmark}', 4),)
  c.retrieve.num_clusters, c.retrieve.more_than = 2, 1
  c.retrieve.iterations = 5
  return c


def test_benchmarks_leave_the_pool_and_say_so(pile, benchmark, tmp_path):
  curation.curate(curation.Request(
      full(pile, benchmark), str(tmp_path), workers=1))
  verdict = rows(tmp_path, 'decontaminate')
  gone = {name: why for name, (_, why) in verdict.items() if why}
  assert set(gone) == {f'original-{i:03d}.png' for i in range(50, 55)}
  assert all(why.startswith(f'reference: {name[-6:-4]}.jpg at ')
             for name, why in gone.items())
  tables_ = [tables.read(path) for path in sorted((folder_of(
      tmp_path, 'decontaminate') / verdicts.ROWS).glob('*.parquet'))]
  score = np.concatenate([t['reference_score'] for t in tables_])
  # Kept images have their nearest reference, too.
  alive = np.concatenate([t['alive'] for t in tables_])
  assert (score[alive] > -1).all() and (score[alive] <= 0.97).all()
  chosen, = (tables.read(path) for path in (folder_of(
      tmp_path, 'retrieve') / selections.SELECTED).glob('*.parquet'))
  by_samples = chosen['cluster'] < 0
  assert 3 <= by_samples.sum() <= 18 and (~by_samples).any()
  assert len(set(chosen['row'].tolist())) == len(chosen['row'])
  mixture = json.loads((tmp_path / 'mixture.json').read_text())
  assert [weight for _, weight in mixture['train']] == [
      len(chosen['row']), 30]


def test_the_page_shows_as_kept_only_what_is_left(pile, benchmark, tmp_path):
  """Of a copy of a reference in the pool that dedup dropped before."""
  c = full(pile, benchmark)
  c.stages = STAGES[:5]
  c.decontaminate.transitive = False
  c.decontaminate.references = (f'folder:{pile}',)
  c.decontaminate.threshold = 1.0
  curation.curate(curation.Request(c, str(tmp_path), workers=1))
  place = work.Place(str(folder_of(tmp_path, 'decontaminate')))
  shown = []

  class Tiles:
    shards = ()

    def tile(self, row, caption='', colour=None):
      if colour == report._KEPT:
        shown.append(row)

  list(report._references(place, Tiles()))
  verdict = list(rows(tmp_path, 'decontaminate').values())
  assert shown and all(verdict[row][0] for row in shown)


def test_near_queries_find_themselves(pile, benchmark, tmp_path):
  c = full(pile, benchmark)
  c.stages = ('ingest', 'describe', 'retrieve')
  c.retrieve.samples, c.retrieve.clusters = ((f'folder:{pile}', 1),), ()
  with pytest.raises(errors.UserError, match='retrieve.samples'):
    empty = full(pile, benchmark)
    empty.retrieve.samples = empty.retrieve.clusters = ()
    curation.curate(curation.Request(empty, str(tmp_path), workers=1))
  curation.curate(curation.Request(c, str(tmp_path), workers=1))
  chosen, = (tables.read(path) for path in (folder_of(
      tmp_path, 'retrieve') / selections.SELECTED).glob('*.parquet'))
  np.testing.assert_allclose(chosen['score'], 1, atol=2e-3)
  assert (chosen['rank'] == 0).all()


@pytest.mark.parametrize('changes, words', [
    ({'decontaminate__threshold': 0.5}, 'set dedup.floor=0.5, or decontam'),
    ({'stages': ('ingest', 'describe', 'decontaminate')}, 'put dedup before'),
    ({'decontaminate__references': ()}, 'decontaminate.references is empty'),
    ({'retrieve__num_clusters': 1000}, 'retrieve.num_clusters: level 1'),
    ({'materialize__weights': (('smaple', 1.0),)}, 'retrieve, sample')])
def test_wrong_references_are_named(pile, benchmark, tmp_path, changes, words):
  c = full(pile, benchmark)
  for key, value in changes.items():
    section, _, name = key.partition('__')
    if name:
      c[section][name] = value
    else:
      c[section] = value
  with pytest.raises(errors.UserError, match=words):
    curation.curate(curation.Request(c, str(tmp_path), workers=1))


def test_judges_drop_and_blur(tmp_path):
  """Unfit images go; faces are blurred in what is trained on."""
  pile = tmp_path / 'pile'
  pile.mkdir()
  for i in range(6):
    image = np.array(picture(i))
    if i == 1:
      image[..., 0] = 255
    elif i == 2:
      image[:16, :16] = 255, 0, 0
    elif i > 2:
      image[..., 0] = 0
    Image.fromarray(image).save(pile / f'{i}.png')
  c = config(pile)
  c.stages = ('ingest', 'filter', 'embed', 'materialize')
  c.filter.nsfw = 'module:tests.curate.test_plugins:redness'
  c.filter.max_nsfw = 0.9
  c.filter.faces = 'module:tests.curate.test_plugins:corner'
  curation.curate(curation.Request(c, str(tmp_path / 'out'), workers=1))
  verdict = rows(tmp_path / 'out', 'filter')
  assert {name: why for name, (_, why) in verdict.items() if why} == {
      '1.png': 'unfit: score 1.00'}
  (spec, _), = json.loads(
      (tmp_path / 'out' / 'mixture.json').read_text())['train']
  source = sources.open_source('arrayrecord:' + str(
      tmp_path / 'out' / spec.removeprefix('arrayrecord:')))
  got = {record.name: record.image for record in source}
  assert set(got) == {'0.png', '2.png', '3.png', '4.png', '5.png'}
  for name, data in got.items():
    same = data == (pile / name).read_bytes()
    assert same == (name != '2.png')
  before, after = np.array(Image.open(pile / '2.png'), int), np.array(
      Image.open(io.BytesIO(got['2.png'])), int)
  assert np.abs(before[24:] - after[24:]).mean() < 4  # JPEG
  assert np.abs(before[:18, :18] - after[:18, :18]).max() > 30
