"""Protocols without steps of training, on drawn images, on two meshes."""

from etils import epath
import jax
import numpy as np
from PIL import Image
import pytest
from sklearn import linear_model

from dinojax.core import errors
from dinojax.evals import protocol
from dinojax.evals import registry
from dinojax.features import backbone
from dinojax.features import preprocessing
from dinojax.models import vit
from dinojax.parallel import mesh as mesh_lib
from tests.interop import cases

COLORS = {'blue': (20, 40, 200), 'green': (30, 180, 60), 'red': (200, 30, 20)}


def draw(path, color, rng):
  noise = rng.normal(0, 40, (16, 16, 3))
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(np.clip(np.array(color) + noise, 0, 255).astype(
      np.uint8)).save(path)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  """Colours as classes, and lists of the same images."""
  root, rng = tmp_path_factory.mktemp('colors'), np.random.default_rng(0)
  lines, several = ['image,labels,region'], ['image,label']
  for part, count in (('train', 20), ('test', 7)):
    for name, color in COLORS.items():
      for i in range(count):
        place = f'{part}/{name}/{i:02d}.png'
        draw(root / place, color, rng)
        if part == 'test':
          lines.append(f'{place},{name};grey,{"north" if i < 3 else "south"}')
        several += [f'{place},{name}'] + [f'{place},warm'] * (name == 'red')
  (root / 'groups.csv').write_text('\n'.join(lines))
  for part in ('train', 'test'):
    (root / f'{part}.csv').write_text('\n'.join(
        several[:1] + [s for s in several if s.startswith(part)]))
  (root / 'warm.csv').write_text('class,association\nred,warm\n')
  return root


def settings(data, **sections):
  return registry.read({
      'data': {'train': f'folder:{data}/train',
               'test': (f'folder:{data}/test',)},
      'multilabel': {'train': f'labels:{data}/train.csv',
                     'test': (f'labels:{data}/test.csv',)},
      'fairness': {'groups': f'labels:{data}/groups.csv', 'top': 1,
                   'associations': f'{data}/warm.csv'},
      'lidar': {'views': 3, 'max_images': 30}} | sections)


def measure(name, values, folder, devices=1):
  model = backbone.Backbone.of(
      cases.weights(vit.ViTConfig(48, 1, 2, 4, image_px=12)),
      mesh_lib.make(devices=jax.devices()[:devices]))
  registry.check(name, values, model.config)
  return registry.run(name, protocol.Job(
      model, registry.opened(name, values),
      preprocessing.Preprocessing(16, 12), epath.Path(folder)), values)


@pytest.mark.parametrize('name', [
    'knn', 'logistic', 'lidar', 'fairness', *(
        pytest.param(name, marks=pytest.mark.slow)  # logistic's fits
        for name in ('fewshot', 'multilabel'))])
def test_rows_are_the_same_on_any_mesh(name, data, tmp_path):
  values = settings(data, knn={'k': (5,)}, fewshot={
      'shots': (2.0, 0.5), 'tries': 2})
  alone, many = (measure(name, values, tmp_path, n) for n in (1, 8))
  for a, b in zip(alone, many, strict=True):
    assert a.rows.keys() == b.rows.keys()
    for key, column in a.rows.items():
      if column.dtype.kind == 'f':
        np.testing.assert_allclose(column, b.rows[key], atol=1e-4)
      else:
        np.testing.assert_array_equal(column, b.rows[key])
    assert a.scores() == pytest.approx(b.scores(), abs=1e-2)
    assert all(np.isfinite(value) for value in a.scores().values())


def test_logistic_is_scikit_learns(data, tmp_path):
  """Same features, same strength: the same answers."""
  result, = measure('logistic', settings(data), tmp_path)
  assert result.facts['converged'] and result.facts['metric'] == 'top-1'
  values = settings(data, knn={'k': (1,)})
  model = backbone.Backbone.of(
      cases.weights(vit.ViTConfig(48, 1, 2, 4, image_px=12)))
  job = protocol.Job(model, registry.opened('knn', values),
                     preprocessing.Preprocessing(16, 12), None)
  from dinojax.evals.protocols import knn
  from dinojax.features import spec
  train, test = (protocol.features(
      job, job.sets[role][0], {'cls': spec.FeatureSpec()}, knn.cls)
                 for role in ('train', 'test'))
  peer = linear_model.LogisticRegression(
      C=result.facts['C'], solver='newton-cholesky', max_iter=500).fit(
          train['cls'].astype(np.float64), train['label'])
  assert (peer.predict(test['cls']) == result.rows['prediction']).mean() > 0.95
  assert result.scores()['top-1'] > 80


def test_fewshot_is_a_mean_over_tries(data, tmp_path):
  result, = measure('fewshot', settings(
      data, fewshot={'shots': (2.0,), 'tries': 3}), tmp_path)
  each = [100 * result.rows[f'2 a class, try {n}'].mean() for n in (1, 2, 3)]
  assert result.scores() == pytest.approx({
      'mean top-1 of tries, 2 a class': np.mean(each),
      'deviation of tries, 2 a class': np.std(each)})
  with pytest.raises(errors.UserError, match='has 18 images to draw from'):
    measure('fewshot', settings(data, fewshot={'shots': (19.0,)}), tmp_path)


def test_multilabel_leaves_difficult_objects_out(data, tmp_path):
  result, = measure('multilabel', settings(data), tmp_path)
  assert result.classes == ('blue', 'green', 'red', 'warm')
  score, = result.scores().values()
  assert score > 80
  hidden = result.rows | {'target': result.rows['target'].copy()}
  worst = hidden['score'][:, 0].argmax()
  hidden['target'][worst, 0] = 0
  wrong, = result.score(hidden).values()
  hidden['target'][worst, 0] = -1
  left, = result.score(hidden).values()
  assert wrong < left


def test_groups_are_scored_alone(data, tmp_path):
  result, = measure('fairness', settings(data), tmp_path)
  scores, right = result.scores(), result.rows['any match']
  north = result.rows['group region'] == 'north'
  assert scores['any match, region north'] == pytest.approx(
      100 * right[north].mean())
  assert scores['any match, region south'] == pytest.approx(
      100 * right[~north].mean())
  assert 20 < scores['given warm'] < 50  # a third is red


@pytest.mark.parametrize('name, sections, message', [
    ('fairness', {'fairness': {'groups': 'folder:x'}}, 'has no groups'),
    ('multilabel', {'multilabel': {}}, 'multilabel.train is missing'),
    ('lidar', {'lidar': {'views': 1}}, 'set views to 2 or more'),
    ('knn', {'knn': {'k': (100,)}}, 'more neighbours than the 60 images')])
def test_mistakes_are_sentences(name, sections, message, data, tmp_path):
  with pytest.raises(errors.UserError, match=message):
    measure(name, settings(data, **sections), tmp_path)
