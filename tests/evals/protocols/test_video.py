"""Classes of videos: frames that are seen, and clips told apart by time."""

from etils import epath
import numpy as np
from PIL import Image
import pytest

from dinojax.core import errors
from dinojax.data import parts
from dinojax.evals import protocol
from dinojax.evals import registry
from dinojax.evals.protocols import video
from dinojax.evals.sets import clips
from dinojax.features import backbone
from dinojax.features import preprocessing
from dinojax.models import vit
from tests.interop import cases

LENGTH = 6


def draw(folder, levels, rng):
  folder.mkdir(parents=True)
  for i, level in enumerate(levels):
    Image.fromarray(np.clip(level + rng.normal(0, 8, (16, 20, 3)), 0, 255)
                    .astype(np.uint8)).save(folder / f'{i:03d}.png')


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  """Clips that grow brighter, and the same ones backwards."""
  root, rng = tmp_path_factory.mktemp('clips'), np.random.default_rng(0)
  for part, count in (('train', 12), ('test', 4)):
    for i in range(count):
      levels = np.linspace(30, 220, LENGTH)
      draw(root / part / 'brighter' / f'{i:02d}', levels, rng)
      draw(root / part / 'darker' / f'{i:02d}', levels[::-1], rng)
  return root


def settings(data, **values):
  return registry.read({'video': {
      'train': f'clips:{data}/train', 'test': (f'clips:{data}/test',),
      'frames': 3, 'frame_step': 2, 'num_heads': 2, 'depth': 1,
      'learning_rates': (1e-5, 3e-3), 'weight_decays': (1e-3,),
      'min_steps': 60, 'epochs': 1.0, 'segments': 1, 'views': 2} | values})


@pytest.mark.slow  # it adds the protocol to what tests/probes learns
def test_order_in_time_tells_classes(data, tmp_path):
  values = settings(data)
  model = backbone.Backbone.of(
      cases.weights(vit.ViTConfig(48, 1, 2, 4, image_px=12)))
  registry.check('video', values, model.config)
  result, = registry.run('video', protocol.Job(
      model, registry.opened('video', values),
      preprocessing.Preprocessing(16, 12), epath.Path(tmp_path)), values)
  assert result.scores()['top-1'] >= 85 and result.facts['heads'] == 2
  assert result.facts['lr'] == 3e-3 and result.classes == (
      'brighter', 'darker')


def test_views_are_parts_times_squares(data):
  clip = clips.open_set(f'clips:{data}/test')[0]
  views = video.seen(clip, video.Settings(
      frames=2, frame_step=1, segments=3, views=2), 16)
  assert views.shape == (6, 2, 16, 16, 3)
  level = views.mean((2, 3, 4)).reshape(3, 2, 2)  # segments, squares, frames
  assert (np.diff(level, axis=-1) > 0).all(), 'frames follow each other'
  assert (np.diff(level, axis=0) > 0).all(), 'so do the parts'
  np.testing.assert_allclose(level[:, 0], level[:, 1], atol=8)


def test_a_clip_that_is_short_repeats_its_last_frame():
  assert video.numbers(0, 3, 4, 2) == [0, 2, 2, 2]
  assert video.numbers(1, 9, 3, 2) == [1, 3, 5]


def test_lists_folders_and_what_cannot_be_read(data, tmp_path, caplog):
  listed = tmp_path / 'list.csv'
  listed.write_text(f'{data}/train/darker/00 1\n\n{tmp_path}/a b::0\n')
  source = clips.open_set(f'clips:{listed}')
  assert [clip.label for clip in (source[0], source[1])] == [1, 0]
  assert source[1].path == f'{tmp_path}/a b' and len(source.classes) == 2
  assert len(clips.open_set(f'clips:{data}/train')) == 24
  assert len(parts.Part('held_out', clips.open_set(f'clips:{data}/train'))) == 2


@pytest.mark.parametrize('spec, message', [
    ('folder:x', 'is no set of videos: give clips:DIR'),
    ('clips:/nowhere', 'is not there: give clips:DIR')])
def test_wrong_sets_are_sentences(spec, message):
  with pytest.raises(errors.UserError, match=message):
    clips.open_set(spec)


def test_wrong_lines_and_heads_are_sentences(data, tmp_path):
  (tmp_path / 'l').write_text('path_without_a_class\n')
  with pytest.raises(errors.UserError, match='line 1 is no path with the num'):
    clips.open_set(f'clips:{tmp_path}/l')
  with pytest.raises(errors.UserError, match='num_heads=5 does not divide'):
    registry.check('video', settings(data, num_heads=5), vit.ViTConfig(
        48, 1, 2, 4, image_px=12))
