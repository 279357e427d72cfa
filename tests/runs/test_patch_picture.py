"""Pictures of patch features: foreground, attention, frames of videos."""

import sys
import types

import numpy as np
from PIL import Image
import pytest

from dinojax import commands
from dinojax.core import errors
from dinojax.data import frames
from dinojax.interop import store
from dinojax.models import convnext
from dinojax.models import vit
from dinojax.runs import patch_picture
from dinojax.runs import pictures
from tests.interop import cases

VIT = vit.ViTConfig(
    embed_dim=48, depth=2, num_heads=2, patch_px=8, image_px=32,
    position='rope', num_registers=2)
CONVNEXT = convnext.ConvNeXtConfig((1, 1, 1, 1), (8, 8, 16, 24))


@pytest.fixture
def weights(tmp_path):
  store.save(str(tmp_path / 'model'), cases.weights(VIT))
  return str(tmp_path / 'model')


def scene(sign=1.0):
  """Patches [2, 12, 12, 8]: a disc of one kind before another, and noise."""
  rng = np.random.default_rng(0)
  y, x = np.mgrid[:12, :12]
  disc = np.stack([(y - c) ** 2 + (x - c) ** 2 < 12 for c in (5, 6)])
  kinds = sign * rng.normal(size=(2, 8))
  return disc, kinds[disc.astype(int)] + 0.1 * rng.normal(size=(2, 12, 12, 8))


@pytest.mark.parametrize('sign', [1.0, -1.0])
def test_the_foreground_is_what_touches_the_borders_least(sign):
  disc, features = scene(sign)
  np.testing.assert_array_equal(pictures.foreground(features), disc)


def test_without_two_sides_all_is_foreground():
  features = np.random.default_rng(0).normal(size=(1, 12, 12, 8)) * 1e-3
  features[0, 0, 0] = 9.0
  assert pictures.foreground(features).all()


def test_components_of_the_foreground_are_its_own():
  disc, features = scene()
  colours = pictures.pca_rgb(features, disc)
  assert not colours[~disc].any() and colours[disc].std(0).min() > 20
  alone = pictures.pca_rgb(features[disc][None, None])
  np.testing.assert_array_equal(colours[disc], alone[0, 0])


def columns(sheet):
  return round((sheet.width - 8) / 232)


def test_a_classifier_tells_the_foreground():
  disc, features = scene()
  kinds = [features[~disc].mean(0), features[disc].mean(0)]
  weight = 4 * (kinds[1] - kinds[0])
  bias = -float(weight @ (kinds[0] + kinds[1]) / 2)
  got = pictures.foreground_pca(features, weight, bias)
  # The median takes corners off, and a single patch that is wrong.
  assert (got.mask != disc).mean() < 0.06
  assert not got.colours[~got.mask].any()
  whitened = (features[got.mask] - got.mean) @ got.axes.T
  np.testing.assert_allclose(whitened.var(0, ddof=1), got.variance)
  with pytest.raises(errors.UserError, match='0 patches are foreground'):
    pictures.foreground_pca(features, weight, bias - 1e3)


def test_a_classifier_of_another_model_is_a_sentence(weights, tmp_path):
  file = tmp_path / 'c.npz'
  np.savez(file, weight=np.ones(48), bias=0.0)
  look = patch_picture.Look(grid=4, count=1, classifier=str(file))
  assert patch_picture.draw([weights], look).width > 200
  for arrays, message in (({'weight': np.ones(7), 'bias': 0.0}, 'have 48'),
                          ({'weight': np.ones(48)}, 'cannot be read')):
    np.savez(file, **arrays)
    with pytest.raises(errors.UserError, match=message):
      patch_picture.draw([weights], look)


def test_attention_and_foreground_are_drawn(weights):
  plain = patch_picture.draw([weights], patch_picture.Look(count=1, grid=4))
  both = patch_picture.draw([weights, weights], patch_picture.Look(
      count=3, grid=4, attention=True, foreground=True))
  assert columns(plain) == 3 and columns(both) == 1 + 2 * 3


def test_a_map_of_attention_is_that_of_the_patches(weights):
  model = patch_picture.models_lib.load(weights)
  pixels = np.random.default_rng(0).integers(
      0, 256, (3, 32, 32, 3), dtype=np.uint8)
  look = patch_picture.Look(grid=4, attention=True)
  got = patch_picture._features(model, pixels, look)['attention']
  whole = np.asarray(model.attention_maps(model.normalize(pixels)))
  want = whole[:, :, 0, 3:].mean(1).reshape(3, 4, 4)
  np.testing.assert_allclose(got, want, atol=1e-6)


def test_large_grids_are_read_an_image_at_a_time(weights, monkeypatch):
  model = patch_picture.models_lib.load(weights)
  sizes = []
  read = model.read
  monkeypatch.setattr(model, 'read', lambda x, spec: (
      sizes.append(len(x)), read(x, spec))[1])
  monkeypatch.setattr(patch_picture, '_BATCH_PATCHES', 32)
  pixels = np.zeros((4, 32, 32, 3), np.uint8)
  patch_picture._features(model, pixels, patch_picture.Look(grid=4))
  assert sizes == [2, 2]


def test_a_model_without_attention_is_a_sentence(tmp_path):
  store.save(str(tmp_path / 'cn'), cases.weights(CONVNEXT))
  with pytest.raises(errors.UserError, match='a ConvNeXt has no attention'):
    patch_picture.draw([str(tmp_path / 'cn')],
                       patch_picture.Look(attention=True))


def grey(i):
  return np.full((40, 60, 3), (10 * i, 0, 0), np.uint8)


def cv2(total=20, readable=True, header=None):
  """OpenCV with a video of frames, each of its own red.

  Args:
    total: its frames.
    readable: whether they can be decoded.
    header: frames that it says it has; None: as many.
  """
  class Video:
    def __init__(self, path):
      self.place = -1
    def get(self, _):
      return float(total if header is None else header)
    def grab(self):
      self.place += 1
      return self.place < total
    def retrieve(self):
      return readable, grey(self.place)[..., ::-1]
    def release(self):
      pass
  return types.SimpleNamespace(
      VideoCapture=Video, CAP_PROP_FRAME_COUNT=7, COLOR_BGR2RGB=4,
      cvtColor=lambda x, _: np.ascontiguousarray(x[..., ::-1]))


def av(total=20, rotation=0):
  """PyAV with the same video, held at an angle."""
  class Video:
    def __enter__(self):
      return self
    def __exit__(self, *_):
      pass
    def decode(self, video):
      for i in range(total):
        yield types.SimpleNamespace(
            to_image=lambda i=i: Image.fromarray(grey(i)), rotation=rotation)
  return types.SimpleNamespace(
      open=lambda path: Video(), FFmpegError=ValueError)


@pytest.fixture
def video(tmp_path, monkeypatch):
  path = tmp_path / 'Clip.MP4'
  path.write_bytes(b'a video')
  installed = {}
  monkeypatch.setattr(
      frames.importlib.util, 'find_spec', lambda name: installed.get(name))

  def install(**modules):
    for name, module in modules.items():
      installed[name] = module
      monkeypatch.setitem(sys.modules, name, module)
  return str(path), install


# Real ones say 0 or a negative number of frames where nothing tells, and a
# file that was cut says more than it has.
@pytest.mark.parametrize('modules', [
    {'cv2': cv2()}, {'av': av()}, {'cv2': cv2(header=0)},
    {'cv2': cv2(header=-1)}, {'cv2': cv2(header=50)}],
    ids=['cv2', 'av', 'uncounted', 'unknown', 'cut'])
def test_frames_are_evenly_over_a_video(video, modules):
  path, install = video
  install(**modules)
  assert frames.is_video(path) and not frames.is_video('photos:train')
  reds = [frame.getpixel((0, 0))[0] for frame in frames.read(path, 3)]
  assert reds == [0, 100, 190]  # of twenty: the first, the middle, the last
  assert len(frames.read(path, 99)) == 20


def test_a_video_is_turned_as_it_was_held(video):
  path, install = video
  install(av=av(rotation=-90))
  assert frames.read(path, 1)[0].size == (40, 60)


@pytest.mark.parametrize('modules, message', [
    ({}, 'nothing that reads one is installed: `pip install opencv'),
    ({'cv2': cv2(total=0)}, 'no frame that can be read'),
    ({'cv2': cv2(readable=False)}, 'no frame that can be read'),
    ({'av': av(total=0)}, 'no frame that can be read')])
def test_a_video_that_cannot_be_read_is_a_sentence(video, modules, message):
  path, install = video
  install(**modules)
  with pytest.raises(errors.UserError, match=message):
    frames.read(path, 3)


@pytest.mark.parametrize('out, message', [
    ('a.txt', 'is no picture by its name: end it with .png'),
    ('none', 'is no picture by its name'), ('.', 'is no picture'),
    ('file/a.png', 'cannot be written'), ('folder.png', 'it is a folder')])
@pytest.mark.parametrize('command', [
    ['pca', '--workdir=no_such_run'], ['crops', '--config=vits']])
def test_a_picture_that_cannot_be_written_is_said_first(
    command, out, message, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'file').write_bytes(b'')
  (tmp_path / 'folder.png').mkdir()
  assert commands.run(command[0], [*command[1:], f'--out={out}']) == 2
  assert message in capsys.readouterr().err


def test_a_video_that_is_not_there_is_a_sentence():
  with pytest.raises(errors.UserError, match='gone.mp4 is not a file'):
    frames.read('gone.mp4', 3)


def test_the_command_draws_a_video(weights, video, tmp_path, capsys):
  path, install = video
  install(cv2=cv2())
  out = tmp_path / 'video.png'
  assert commands.run('pca', [
      f'--workdir={weights}', f'--images={path}', '--count=2', '--grid=4',
      '--attention', '--foreground', f'--out={out}']) == 0
  assert columns(Image.open(out)) == 4
