"""The linear probe on images of other kinds: what each set counts."""

import json

from etils import epath
import numpy as np
from PIL import Image
import pytest

from dinojax.core import errors
from dinojax.evals import linear_probe
from dinojax.evals import protocol
from dinojax.evals import registry
from dinojax.evals.protocols import robustness
from dinojax.features import backbone
from dinojax.features import preprocessing
from dinojax.metrics import corruption
from dinojax.models import vit
from tests.interop import cases

WNIDS = ('n01440764', 'n01443537', 'n15075141')
COLORS = ((200, 30, 20), (30, 180, 60), (20, 40, 200))


def draw(path, color, rng):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(np.clip(np.array(color) + rng.normal(
      0, 25, (16, 16, 3)), 0, 255).astype(np.uint8)).save(path)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  """ImageNet in small: colours are classes; A has two of them."""
  root, rng = tmp_path_factory.mktemp('imagenet'), np.random.default_rng(0)
  for i, (wnid, color) in enumerate(zip(WNIDS, COLORS, strict=True)):
    for n in range(20):
      draw(root / f'in/train/{wnid}/{n:02d}.JPEG', color, rng)
    for n in range(4):
      number = 4 * i + n + 1
      draw(root / f'in/val/{wnid}/ILSVRC2012_val_{number:08d}.JPEG', color,
           rng)
      for level in (1, 2, 3, 4, 5):  # from its colour to that of another
        share = level / 5
        other = COLORS[(i + 1) % 3]
        draw(root / f'c/fog/{level}/{wnid}/{n}.JPEG', (
            (1 - share) * np.array(color) + share * np.array(other)), rng)
    if i:
      for n in range(4):
        draw(root / f'a/{wnid}/{n}.jpg', COLORS[0], rng)
  # The second right answer of the first class's images; none of the last's.
  (root / 'in/real.json').write_text(json.dumps(
      [[0, 1]] * 4 + [[0]] * 4 + [[]] * 4))
  return root


def measure(data, folder, *tests, **values):
  settings = registry.read({
      'data': {'train': f'folder:{data}/in/train'},
      'robustness': {'test': tests, 'layers': (1,), 'averages': (True,),
                     'min_steps': 60, 'epochs': 1.0, 'cached': True} | values})
  model = backbone.Backbone.of(
      cases.weights(vit.ViTConfig(48, 1, 2, 4, image_px=12)))
  registry.check('robustness', settings, model.config)
  return registry.run('robustness', protocol.Job(
      model, registry.opened('robustness', settings),
      preprocessing.Preprocessing(16, 12), epath.Path(folder)), settings)


def test_each_set_counts_what_its_authors_count(data, tmp_path):
  plain, real, among, corrupted = measure(
      data, tmp_path, f'imagenet:{data}/in', f'imagenet-real:{data}/in',
      f'imagenet-a:{data}/a', f'imagenet-c:{data}/c')
  assert plain.scores()['top-1'] > 90
  # Images of two answers are right; of one, wrong; without any, left out.
  right = real.rows['top-1']
  assert np.isnan(right).sum() == 4
  assert real.scores()['top-1'] == pytest.approx(50, abs=13)
  # All are drawn in the colour of a class that A lacks, which no answer is.
  assert among.facts['answers among'] == 2
  assert set(among.rows['prediction']) <= {1, 2}
  accuracy = [corrupted.rows['top-1'][corrupted.rows['level'] == n].mean()
              for n in (1, 2, 3, 4, 5)]
  assert accuracy[0] > 0.9 and accuracy[4] < 0.1
  want = 100 * (1 - np.mean(accuracy)) / (corruption.ALEXNET['fog'] / 100)
  assert corrupted.scores()['mCE'] == pytest.approx(want)
  assert 0 <= corrupted.intervals()['mCE'][0] < want


def test_a_set_for_evaluation_alone_is_not_trained_on(data, tmp_path):
  class Closed:
    spec, evaluation_only, classes = 'objectnet:DIR', True, WNIDS
    __len__ = lambda self: 3

  job = protocol.Job(None, {'train': (Closed(),), 'validation': (),
                            'test': ()}, None)
  with pytest.raises(errors.UserError, match='may not be trained on'):
    robustness.run(job, robustness.Settings())


def test_settings_are_those_of_the_probe():
  assert issubclass(robustness.Settings, linear_probe.Settings)
