"""Retrieval and copies, from files to scores."""

import io

import jax
import numpy as np
from PIL import Image
import pytest

from dinojax.core import errors
from dinojax.data import sources
from dinojax.evals import exhibits
from dinojax.evals import protocol
from dinojax.evals import ranking_picture
from dinojax.evals import registry
from dinojax.evals import whole
from dinojax.evals.protocols import knn
from dinojax.features import backbone
from dinojax.features import preprocessing
from dinojax.features import spec as spec_lib
from dinojax.features import stream
from dinojax.metrics import copies
from dinojax.metrics import retrieval
from dinojax.models import vit
from dinojax.parallel import mesh as mesh_lib
from tests.evals.sets import test_retrieval_sets as sets
from tests.interop import cases

CONFIG = vit.ViTConfig(48, 1, 2, 4, image_px=12)
CLS = {'cls': spec_lib.FeatureSpec()}


@pytest.fixture(scope='module')
def model():
  return backbone.Backbone.of(cases.weights(CONFIG))


@pytest.fixture
def measure(model, tmp_path):
  """Runs a protocol with settings on the tiny model."""
  def run(name, **values):
    settings = registry.read({name: values})
    job = protocol.Job(
        model, registry.opened(name, settings),
        preprocessing.Preprocessing(16, 12), tmp_path, stream.Reading(4))
    registry.check(name, settings, model.config)
    return registry.run(name, job, settings)
  return run


def cls_of(model, images, size=None):
  """[r, d] unit CLS tokens of encoded images, each by itself."""
  out = []
  for data in images:
    if size is None:
      pixels = model.pixels([data], resize_px=16, crop_px=12)
    else:
      pixels = np.asarray(Image.open(io.BytesIO(data)).convert('RGB').resize(
          size[::-1], Image.Resampling.BICUBIC))[None]
    out.append(np.asarray(model(model.normalize(pixels)).cls)[0])
  return retrieval.unit(np.stack(out))


def num_programs(model):
  """Programs of the backbone that were compiled."""
  return sum(program._cache_size()
             for program in model.net._programs.values())


# --- whole images in few shapes ---


def test_seven_shapes_hold_all_aspects():
  some = whole.shapes(96, 4)
  assert some == ((96, 96), (72, 96), (64, 96), (56, 96), (96, 72), (96, 64),
                  (96, 56))
  names = [some[whole.nearest(size, some)] for size in (
      (1024, 768), (768, 1024), (500, 500), (640, 360), (10, 9), (3000, 100))]
  assert names == [(72, 96), (96, 72), (96, 96), (56, 96), (96, 96), (56, 96)]
  assert whole.shapes(4, 4) == ((4, 4),)


@pytest.fixture
def odd_sizes(tmp_path):
  """Images of twelve sizes, a damaged one among them."""
  rng = np.random.default_rng(0)
  for i in range(12):
    size = tuple(int(x) for x in rng.integers(20, 90, 2))
    sets.put(tmp_path / f'{"ab"[i % 2]}/{i:02}.jpg', sets.picture(i, size))
  (tmp_path / 'a/99.jpg').write_bytes(b'no image')
  return sources.open_source(f'folder:{tmp_path}')


def test_rows_of_whole_images_are_those_of_each_alone(model, odd_sizes):
  counted = []
  job = protocol.Job(model, {}, preprocessing.Preprocessing(16, 12), None,
                     stream.Reading(4), progress=counted.append)
  before = num_programs(model)
  rows = whole.features(job, odd_sizes, CLS, knn.cls, long_px=24)
  compiled = num_programs(model) - before
  assert 3 <= compiled <= 7
  assert sum(counted) == len(odd_sizes) == 13
  again = whole.features(job, odd_sizes, CLS, knn.cls, long_px=24)
  np.testing.assert_array_equal(again['cls'], rows['cls'])
  assert num_programs(model) - before == compiled
  assert list(rows['index']) == [i for i in range(13) if (
      odd_sizes[i].name != 'a/99.jpg')]
  some = whole.shapes(24, 4)
  for row, index in zip(rows['cls'], rows['index'], strict=True):
    data = odd_sizes[int(index)].image
    shape = some[whole.nearest(Image.open(io.BytesIO(data)).size, some)]
    np.testing.assert_allclose(
        retrieval.unit(row[None])[0], cls_of(model, [data], shape)[0],
        atol=2e-6)


@pytest.mark.slow
def test_eight_devices_give_the_same_rows(model, odd_sizes):
  many = backbone.Backbone.of(cases.weights(CONFIG), mesh_lib.make())
  assert many.mesh.size == 8
  tables = [whole.features(
      protocol.Job(each, {}, preprocessing.Preprocessing(16, 12), None,
                   stream.Reading(8)),
      odd_sizes, CLS, knn.cls, long_px=24, scales=(1.0, 0.5))
            for each in (model, many)]
  np.testing.assert_array_equal(tables[0]['index'], tables[1]['index'])
  np.testing.assert_allclose(tables[0]['cls'], tables[1]['cls'], atol=2e-6)


def test_scales_are_averaged(model):
  images = np.random.default_rng(0).integers(
      0, 256, (2, 24, 16, 3), dtype=np.uint8)
  both = whole.Scaled(model, (1.0, 0.7071, 0.5))
  got = both.run(images, CLS, pixels=True, reduce=knn.cls)['cls']
  want = []
  for size in ((24, 16), (16, 12), (12, 8)):
    resized = jax.image.resize(
        model.normalize(images), (2, *size, 3), 'linear', antialias=False)
    want.append(np.asarray(model(np.asarray(resized)).cls))
  np.testing.assert_allclose(got, np.mean(want, 0), atol=2e-6)


# --- protocols ---


def test_revisited_scores_are_those_of_a_ranking_by_hand(
    model, measure, tmp_path):
  spec = sets.revisited(tmp_path / 'set')
  measured, = measure('retrieval', database=spec)
  folder = tmp_path / 'set/jpg'
  database = cls_of(
      model, [(folder / f'{x}.jpg').read_bytes() for x in 'abcde'])
  crops = [Image.open(folder / 'q.jpg').crop((10, 5, 30, 30)),
           Image.open(folder / 'r.jpg')]
  encoded = []
  for crop in crops:
    out = io.BytesIO()
    crop.save(out, 'PNG')
    encoded.append(out.getvalue())
  cosine = cls_of(model, encoded) @ database.T
  # By hand for the first query: b is easy, a is hard, d is junk.
  order = [x for x in np.argsort(-cosine[0]) if x != 3]
  ranks = sorted(order.index(x) for x in (0, 1))
  want = np.mean([((1.0 if r == 0 else i / r) + (i + 1) / (r + 1)) / 2
                  for i, r in enumerate(ranks)])
  assert measured.rows['mAP medium'][0] == pytest.approx(want)
  assert np.isnan(measured.rows['mAP easy'][1])  # no easy image of the second
  assert set(measured.scores()) == {
      f'{metric} {setup}' for metric in ('mAP', 'mP@1', 'mP@5', 'mP@10')
      for setup in ('easy', 'medium', 'hard')}
  whole_queries, = measure('retrieval', database=spec, crop_queries=False)
  assert whole_queries.num_rows == 2
  page = measured.pictures['ranking']
  assert page.dtype == np.uint8 and page.shape[1] > page.shape[0] > 200


def test_lists_and_pairs_have_scores(measure, tmp_path):
  listed, = measure(
      'retrieval', database=sets.relevance(tmp_path / 'list'))
  np.testing.assert_array_equal(listed.rows['mAP'], [1.0, np.nan])
  assert listed.facts == {'queries without a line': 1}
  for i in range(4):  # each new one is its old one, darker
    data = sets.picture(i)
    sets.put(tmp_path / f'pairs/old/{i}.jpg', data)
    sets.put(tmp_path / f'pairs/new/{i}.jpg', data)
  pairs = measure('retrieval', database=f'amstertime:{tmp_path}/pairs')
  assert [each.test.partition(', ')[2] for each in pairs] == [
      'old asks new', 'new asks old']
  assert all(each.scores() == {'mAP': 100.0, 'first': 100.0} for each in pairs)


def test_queries_of_their_own_are_not_mixed(measure, tmp_path):
  with pytest.raises(errors.UserError, match='has queries of its own: leave'):
    measure('retrieval', database=sets.relevance(tmp_path / 'list'),
            query='patterns:validation')
  with pytest.raises(errors.UserError, match='image_px=3 is smaller than a '
                                             'patch of 4 pixels: set'):
    measure('retrieval', database='patterns:validation', image_px=3)
  with pytest.raises(errors.UserError, match=r'scales=\(\) has no scale'):
    measure('retrieval', database='patterns:validation', scales=())
  with pytest.raises(errors.UserError, match='copydays.images is missing'):
    measure('copydays')
  with pytest.raises(errors.UserError, match='data.test is missing|retrieval.d'
                                             'atabase is missing'):
    measure('retrieval')


def test_copies_come_before_distractors(measure, tmp_path):
  for i in range(5):
    data = sets.picture(i, (60, 40))
    sets.put(tmp_path / f'c/g{i}/original.jpg', data)
    picture = Image.open(io.BytesIO(data))
    picture.resize((30, 20)).save(tmp_path / f'c/g{i}/small.jpg', quality=40)
  for i in range(12):
    sets.put(tmp_path / f'other/{i}.jpg', sets.picture(100 + i, (60, 40)))
  alone, = measure('copydays', images=f'copies:{tmp_path}/c')
  assert alone.facts['distractors'] == 0 and alone.facts['searched'] == 5
  among, = measure(
      'copydays', images=f'copies:{tmp_path}/c', image_px=24,
      distractors=f'folder:{tmp_path}/other', whitening='patterns:train')
  assert among.facts['searched'] == 17 and among.num_rows == 5
  assert among.test.endswith(', copies')
  assert alone.scores()['mAP'] == 100.0 and among.scores()['mAP'] > 60
  assert alone.pictures['ranking'].any()


# --- measures ---


def test_average_precision_of_copies_by_hand():
  """Hits at ranks 1 and 3 of two, and a hit beyond the top."""
  scores = np.array([[0.9, 0.8, 0.7, 0.1]])
  right = np.array([[True, False, True, False]])
  want = ((1 + 1) / 2 + (1 / 2 + 2 / 3) / 2) / 2
  assert copies.average_precision(scores, right, 20)[0] == pytest.approx(want)
  assert copies.average_precision(scores, right, 2)[0] == pytest.approx(0.5)
  assert np.isnan(copies.average_precision(scores, ~(right | ~right), 20)[0])


def test_votes_of_the_nearest_are_those_of_all_classes():
  rng = np.random.default_rng(0)
  scores = rng.normal(size=(30, 40)) - 0.5
  scores[0] = -1.0  # nobody is near: the first class, as certain as any
  labels = rng.integers(0, 9, 40) * 3
  classes, index = np.unique(labels, return_inverse=True)
  for k in (1, 4, 40):
    near = np.argsort(-scores, axis=1)[:, :k]
    best = np.zeros((30, len(classes)))
    for q in range(30):
      for place in near[q]:
        best[q, index[place]] = max(best[q, index[place]], scores[q, place])
    power = np.exp(2.0 * best)
    sure = (power / power.sum(1, keepdims=True)).max(1)
    got = retrieval.soft_votes(scores, labels, k=k, temperature=2.0)
    np.testing.assert_array_equal(got[0], classes[best.argmax(1)])
    np.testing.assert_allclose(got[1], sure)


def test_whitening_leaves_out_what_has_no_spread():
  rng = np.random.default_rng(0)
  flat = rng.normal(size=(50, 3)) @ rng.normal(size=(3, 8))
  white = retrieval.whitened(flat, flat, 8)
  assert white.shape == (50, 3) and np.isfinite(white).all()


def test_met_is_tuned_on_validation(measure, tmp_path):
  """Queries are images of the database; distractors are others."""
  spec = sets.met(tmp_path)
  for query, of in (('v', 1), ('t', 2)):
    sets.put(tmp_path / f'images/test_met/{query}.jpg',
             (tmp_path / f'images/MET/{of}/0.jpg').read_bytes())
  for i, name in enumerate(('test_other/v.jpg', 'test_noart/t.jpg')):
    sets.put(tmp_path / 'images' / name, sets.picture(50 + i))
  measured, = measure('retrieval', database=spec, met_dimensions=None)
  assert measured.scores() == {'GAP': 100.0, 'GAP-': 100.0, 'accuracy': 100.0}
  assert measured.facts['k'] in exhibits.KS and measured.facts['exhibits'] == 3
  assert list(measured.rows['has answer']) == [1, 0]
  white, = measure('retrieval', database=spec)
  assert white.facts['dimensions'] == 2  # three images spread in two


def test_a_distractor_that_is_sure_lowers_gap():
  rows = {'confidence': np.array([0.9, 0.8, 0.7]),
          'right': np.array([0.0, 1.0, 0.0]),
          'has answer': np.array([0.0, 1.0, 1.0])}
  assert exhibits.scores(rows) == pytest.approx(
      {'GAP': 25.0, 'GAP-': 50.0, 'accuracy': 50.0})
  assert exhibits.scores({k: v[:1] for k, v in rows.items()}) == {}


# --- pictures ---


def test_frames_say_what_is_right(odd_sizes):
  page = ranking_picture.draw(odd_sizes, [
      (0, [ranking_picture.Answer(1, True, 0.5),
           ranking_picture.Answer(6, False, 0.4)]), (12, [])])
  green, red = (np.array(x) for x in (
      ranking_picture._RIGHT, ranking_picture._WRONG))
  columns = lambda colour: np.flatnonzero(
      (page == colour).all(-1).sum(0) > 90)  # the sides of a frame
  assert columns(green).max() < columns(red).min()
  assert ranking_picture.chosen(3) == [0, 1, 2]
  assert len(ranking_picture.chosen(100)) == 8
