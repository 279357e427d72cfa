"""Segmentation and depth, from drawn images to scores."""

import dataclasses
import functools

from etils import epath
import jax
import numpy as np
from PIL import Image
import pytest

from dinojax.core import errors
from dinojax.evals import dense
from dinojax.evals import protocol
from dinojax.evals import registry
from dinojax.evals import views as views_lib
from dinojax.evals import windows
from dinojax.evals.protocols import depth
from dinojax.evals.protocols import segmentation
from dinojax.evals.sets import depths
from dinojax.evals.sets import masks
from dinojax.features import backbone
from dinojax.features import preprocessing
from dinojax.models import vit
from dinojax.parallel import mesh as mesh_lib
from dinojax.probes.tasks import dense as dense_task
from dinojax.probes.tasks import segment
from tests.evals import drawn
from tests.interop import cases

CONFIG = vit.ViTConfig(32, 4, 2, 4, image_px=16, num_registers=2)
# Landscape and portrait, no multiples of a patch.
SIZES = ((41, 30), (30, 37), (52, 30))
QUICK = dict(short_px=30, crop_px=26, stride_px=18, warmup_steps=4,
             batch_size=6, learning_rates=(3e-3, 3e-2), weight_decays=(1e-3,),
             pictures=2)


@functools.cache
def model(data=1):
  mesh = mesh_lib.make(data, 1, jax.devices()[:data])
  return backbone.Backbone.of(cases.weights(CONFIG), mesh)


def job(folder, sets, data=1, progress=lambda count: None):
  return protocol.Job(
      model(data), sets | {'validation': sets.get('validation', ())},
      preprocessing.Preprocessing(), epath.Path(folder), progress=progress)


@pytest.fixture(scope='module')
def scenes(tmp_path_factory):
  root = tmp_path_factory.mktemp('scenes')
  for kind in ('masks', 'depth'):
    for part, count, seed in (('train', 12, 0), ('test', 5, 1)):
      drawn.save(root / kind / part, kind, count, SIZES, seed)
  return root


def segmentation_sets(root, *, test='test'):
  return {'train': (masks.train(f'{root}/masks/train'),),
          'test': (masks.test(f'{root}/masks/{test}'),)}


def run_segmentation(root, folder, data=1, steps=40, **values):
  settings = segmentation.Settings(**QUICK | {'steps': steps} | values)
  counted = []
  measured, = segmentation.run(
      job(folder, segmentation_sets(root), data, counted.append), settings)
  sizes = {'train': 12, 'validation': 0, 'test': 5}
  assert sum(counted) == segmentation.passes(settings, sizes)
  return measured


@pytest.fixture(scope='module')
def stripes(scenes, tmp_path_factory):
  return run_segmentation(scenes, tmp_path_factory.mktemp('heads'))


def test_stripes_are_told_apart(stripes):
  scores = stripes.scores()
  assert scores['mIoU'] > 75 and scores['aAcc'] > 85, scores
  assert stripes.facts['heads'] == 2 and stripes.num_rows == 5
  assert set(stripes.facts['IoU by class']) == set(drawn.NAMES)
  assert 0 < stripes.facts['validation mIoU'] <= 100
  assert list(stripes.rows['index']) == list(range(5))
  low, high = stripes.intervals()['mIoU']
  assert low <= scores['mIoU'] <= high


def test_rows_count_every_pixel_with_a_label(stripes):
  for i in range(5):
    width, height = SIZES[i % 3]
    labelled = stripes.rows['labelled'][i]
    assert labelled.sum() == width * (height - 1)  # a line is not known
    assert stripes.rows['predicted'][i].sum() == labelled.sum()
    np.testing.assert_array_equal(
        stripes.rows['union'][i], labelled + stripes.rows['predicted'][i]
        - stripes.rows['intersection'][i])


def test_pictures_have_three_parts_and_a_legend(stripes):
  assert set(stripes.pictures) == {'test0', 'test4'}
  for pixels in stripes.pictures.values():
    assert pixels.dtype == np.uint8 and pixels.shape[2] == 3
    assert pixels.shape[1] > 3 * 60


@pytest.mark.slow  # make test deals other rows to eight devices
def test_rows_are_those_of_eight_devices(scenes, stripes, tmp_path):
  other = run_segmentation(scenes, tmp_path, data=8)
  assert other.facts['lr'] == stripes.facts['lr']
  for name, column in stripes.rows.items():
    # Sums in another order turn a few pixels on an edge.
    off = np.abs(column.astype(int) - other.rows[name]).sum()
    assert off <= 0.002 * stripes.rows['labelled'].sum(), name


def head_stack(task, count):
  init = jax.vmap(lambda key: task.init(
      key, task.choices[dense_task.CHOICE].widths(CONFIG),
      dense_task.CHOICE))
  stack = init(jax.random.split(jax.random.key(1), count))
  stack['params']['kernel'] *= 100
  return dense.replicated(stack, model().mesh)


def naive(task, head, picture, views):
  """Classes of an image, window after window, view after view."""
  total, size = 0.0, picture.size[::-1]
  single = jax.tree.map(lambda x: x[0], head)
  for ratio, flip in views.kinds:
    rows, columns = windows.view_size(size, views.short_px, ratio)
    view = np.asarray(picture.resize(
        (columns, rows), Image.Resampling.BILINEAR))
    if flip:
      view = view[:, ::-1]

    def predict(some):
      images = np.asarray(some, np.float32) / 255
      images = (images - np.float32(model().mean)) / np.float32(model().std)
      images = np.asarray(task.pixels.fit(images))
      features = model().read(images, task.choices[dense_task.CHOICE])
      logits, _ = task.outputs(single, features, {}, None)
      return task.pixels.resize(logits, some.shape[1:3])

    logits = windows.slid(predict, view, views.windows, size, flip=flip)
    total += np.asarray(jax.nn.softmax(logits))
  return total


def test_maps_equal_windows_after_another(scenes):
  """Groups, lists, padding and products change nothing."""
  source = masks.test(f'{scenes}/masks/test')
  task = segment.Segment(
      num_outputs=3, width=CONFIG.embed_dim, pixels=dense_task.Pixels(
          model().mean, model().std, CONFIG.side_px))
  views = views_lib.Views(windows.Windows(26, 18), 30, ratios=(1.0, 1.4),
                      flips=True)
  heads = head_stack(task, 2)
  for at_once in (2, 7):
    maps = dense.Maps(job('/nowhere', {}), task, views, is_class=True,
                      at_once=at_once)
    sizes = dense.sizes(source, maps.job)
    maps.plan(sizes, 'segmentation')
    rows = list(maps.of(source, sizes, heads))
    assert [row['index'] for row, _ in rows] == list(range(5))
    for row, got in rows[:3]:
      for i in range(2):
        head = jax.tree.map(lambda x, i=i: x[i:i + 1], heads)
        total = naive(task, head, source[row['index']].decoded()[0], views)
        best = np.sort(total, axis=-1)
        sure = best[..., -1] - best[..., -2] > 1e-4
        assert sure.mean() > 0.98
        np.testing.assert_array_equal(
            got[i][sure], total.argmax(-1)[sure])
    # Windows of both ratios are of one shape, and so is the program.
    assert len(maps.shapes.windows) == maps.num_compiled == 1


def test_few_shapes_are_compiled(scenes):
  source = masks.test(f'{scenes}/masks/test')
  task = segment.Segment(num_outputs=3, width=CONFIG.embed_dim)
  sizes = [(480, 640 + 4 * i) for i in range(8)]
  maps = dense.Maps(
      job('/nowhere', {}), task, views_lib.Views(windows.Windows()),
      is_class=True, at_once=2)
  with pytest.raises(errors.UserError, match='windows of 8 shapes, and at mos'):
    maps.plan(sizes, 'depth')
  # With windows, any sizes and ratios: one, and two more for each below 1.
  for ratios, most in (((1.0, 1.32, 3.0), 1), ((0.5, 0.75, 1.0), 7)):
    views = views_lib.Views(windows.Windows(64, 40), 64, ratios=ratios)
    shapes = {shape for size in ((64, w) for w in range(64, 600, 7))
              for flipped in (size, size[::-1])
              for shape in views.counts(flipped)}
    assert len(shapes) <= most, shapes
  assert len(dense.sizes(source, maps.job)) == 5


def depth_sets(root):
  return {'train': (depths.train(f'{root}/depth/train'),),
          'test': (depths.test(f'{root}/depth/test'),)}


@pytest.mark.parametrize('recipe, steps, rate', [
    ('v3', 80, 0.01),
    pytest.param('dpt', 60, 0.003, marks=pytest.mark.slow),
    pytest.param('dpt3', 40, 0.003, marks=pytest.mark.slow),
    pytest.param('lin4', 30, 0.05, marks=pytest.mark.slow)])
def test_depth_of_stripes(scenes, tmp_path, recipe, steps, rate):
  settings = depth.Settings(
      recipe=recipe, channels=16, steps=steps, warmup_steps=4, batch_size=6,
      crop=(28, 20),
      learning_rates=(rate,), max_depth=4.0, pictures=1, plain_steps=10,
      show='photos:validation')
  counted = []
  measured, = depth.run(job(
      tmp_path, depth_sets(scenes), progress=counted.append), settings)
  assert sum(counted) == depth.passes(
      settings, {'train': 12, 'validation': 0, 'test': 5})
  scores = measured.scores()
  # The mean depth everywhere: abs_rel 0.44, a1 about a third.
  assert scores['abs_rel'] < 0.25 and scores['a1'] > 60, scores
  assert list(measured.rows) == [
      'index', *depth.metrics.METRICS] and measured.facts['without depths'] == 0
  assert set(measured.pictures) == {'test0', 'show0'}


def test_mistakes_are_sentences_before_work(scenes, tmp_path):
  other = drawn.save(tmp_path / 'other', 'masks', 2, SIZES, 2)
  (other / 'classes.txt').write_text('red\nblue\ngreen')
  sets = segmentation_sets(scenes) | {'test': (masks.test(str(other)),)}
  with pytest.raises(errors.UserError, match=r'has 3 classes \(red, blue'):
    segmentation.run(job(tmp_path, sets), segmentation.Settings(**QUICK))
  Image.new('L', (41, 31)).save(other / 'masks' / '000.png')
  (other / 'classes.txt').write_text('\n'.join(drawn.NAMES))
  sets = segmentation_sets(scenes) | {'test': (masks.test(str(other)),)}
  with pytest.raises(errors.UserError, match='has 41 × 31 pixels, and its im'):
    segmentation.run(job(tmp_path, sets), segmentation.Settings(**QUICK))
  assert not (tmp_path / 'heads').exists()
  wrong = depth_sets(scenes) | {'test': (
      depths.test(f'depth:{scenes}/depth/test?scale=1'),)}
  with pytest.raises(errors.UserError, match='depths are 2e[+]03 metres in th'):
    depth.run(job(tmp_path, wrong), depth.Settings())


@pytest.mark.parametrize('module, values, text', [
    (segmentation, {'layers': 5}, 'segmentation reads 5 layers'),
    (segmentation, {'crop_px': 2}, 'is smaller than a patch of 4 pixels'),
    (depth, {'min_depth': 20.0}, 'depth.min_depth=20 is not below')])
def test_backbones_that_do_not_fit(module, values, text):
  with pytest.raises(errors.UserError, match=text):
    module.check(module.Settings(**values), CONFIG)


@pytest.mark.parametrize('module, recipe', [
    (segmentation, 'masks'), (depth, 'dpt'), (depth, 'relative')])
def test_stages_of_a_convnext_are_no_blocks(module, recipe):
  with pytest.raises(errors.UserError, match=f'recipe={recipe} .* a ConvNeXt'):
    module.check(module.Settings(recipe=recipe), cases.CONVNEXT)


def test_a_bad_image_is_left_out(scenes, tmp_path, caplog):
  folder = drawn.save(tmp_path / 'test', 'masks', 3, SIZES, 3)
  whole = (folder / 'images' / '001.png').read_bytes()
  (folder / 'images' / '001.png').write_bytes(whole[:len(whole) // 2])
  sets = segmentation_sets(scenes) | {'test': (masks.test(str(folder)),)}
  measured, = segmentation.run(job(tmp_path, sets), segmentation.Settings(
      **QUICK | {'steps': 2, 'pictures': 0, 'learning_rates': (0.01,)}))
  assert list(measured.rows['index']) == [0, 2]
  assert '001.png is left out of the evaluation' in caplog.text


def test_recipes_of_papers():
  values = segmentation.Settings().resolved
  assert (values.short_px, values.crop_px, values.stride_px) == (512, 512, 341)
  assert len(segmentation.Settings().rates) == 6 and values.ratios == (1.0,)
  many = segmentation.Settings(recipe='ms').resolved
  assert (many.layers, many.crop_px, many.stride_px) == (4, 640, 320)
  assert many.flips and many.ratios[-1] == 3.0
  assert segmentation.Settings(recipe='ms').rates == [(1e-3, 1e-4)]
  assert depth.depth.read_layers(24, 4) == (4, 11, 17, 23)
  assert depth.depth.read_layers(12, 4) == (2, 5, 8, 11)
  assert depth.depth.read_layers(40, 1) == 1
  assert depth.depth.read_layers(2, 2) == (0, 1)
  assert depth.depth.read_layers(12, 3) == (3, 7, 11)
  assert depth.Settings().rates == [(3e-4, 1e-4)]


def test_drawing_changes_no_key():
  """More pictures, or fewer heads side by side, are the same numbers."""
  base = registry.read({})
  key = lambda settings: protocol.key(
      'segmentation', settings.segmentation, {})
  same = dataclasses.replace(base.segmentation, pictures=1, heads_at_once=3)
  other = dataclasses.replace(base.segmentation, steps=7)
  assert key(base) == protocol.key('segmentation', same, {})
  assert key(base) != protocol.key('segmentation', other, {})


@pytest.mark.slow  # it adds a second evaluation of a run
def test_within_a_run_nothing_is_compiled_again(scenes, stripes):
  """The same numbers without a folder, and programs that are kept."""
  nested = protocol.Nested(lambda: False, {}, {})
  inside = dataclasses.replace(
      job('/nowhere', segmentation_sets(scenes)), folder=None, nested=nested)
  settings = segmentation.Settings(**QUICK | {'steps': 40})
  with mesh_lib.activate(inside.model.mesh):  # as the run has
    first, = segmentation.run(inside, settings)
    assert first.scores() == pytest.approx(stripes.scores(), abs=0.2)
    counts = {name: program._cache_size() for name, program in
              nested.programs.items() if 'maps' in name}
    assert counts
    segmentation.run(inside, settings)
    assert counts == {name: nested.programs[name]._cache_size()
                      for name in counts}
    stopped = dataclasses.replace(inside, nested=protocol.Nested(
        lambda: True, {}, {}))
    with pytest.raises(errors.Stopped):
      segmentation.run(stopped, settings)
