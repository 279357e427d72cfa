"""Segments and objects: their sets, their crops, and a head that finds them."""

import builtins
import json

import jax
import numpy as np
from PIL import Image
from pycocotools import mask as coco
import pytest

from dinojax.core import errors
from dinojax.data import map_crops
from dinojax.evals import segments as answers
from dinojax.evals import squares
from dinojax.evals.protocols import segments
from dinojax.evals.sets import segments as sets
from dinojax.probes.tasks import masks as task_lib
from tests.evals import objects
from tests.evals import test_dense

SIZES = ((48, 40), (40, 56), (64, 40))
QUICK = dict(
    num_queries=10, num_blocks=2, num_points=256, most_targets=5,
    learning_rate=3e-3, warmup_steps=10, batch_size=8, crop_px=48,
    scales=(0.8, 1.5), pictures=2, threshold=0.5)


@pytest.fixture(scope='module')
def drawn(tmp_path_factory):
  root = tmp_path_factory.mktemp('objects')
  objects.save(root / 'train', 24, SIZES, 0)
  objects.save(root / 'test', 6, SIZES, 1)
  return root


def spec(root, part, kind):
  return f'coco_{kind}:{root}/{part}/{kind}.json?images={root}/{part}/images'


def opened(root, part, kind):
  return sets.opened(spec(root, part, kind), 'val2017')


def test_objects_and_segments_are_read_as_they_were_drawn(drawn):
  rng = np.random.default_rng(1)
  for kind in ('instances', 'panoptic'):
    rng = np.random.default_rng(1)
    source = opened(drawn, 'test', kind)
    for i in range(len(source)):
      pixels, things, ids = objects.scene(rng, SIZES[i % 3])
      picture, got = source[i].decoded()
      np.testing.assert_array_equal(picture, pixels)
      if kind == 'instances':
        assert [source.category_ids[k] for k in got.kinds] == [
            each['category_id'] for each in things]
        np.testing.assert_array_equal(
            got.masks, [each['mask'] for each in things])
        continue
      whole = got.panoptic(3)
      np.testing.assert_array_equal(whole[..., 1] < 0, ids == 0)
      np.testing.assert_array_equal(whole[ids == 0], [[3, -1]] * (ids == 0
                                                                 ).sum())
      assert len(np.unique(whole[..., 1])) == len(np.unique(ids))
      np.testing.assert_array_equal(whole[..., 0][ids == 1], 2)  # ground
  assert source.classes == ('box', 'disc', 'ground') and source.stuff == (2,)


def test_outlines_and_run_lengths_are_what_coco_makes_of_them():
  square = [[2, 1, 6, 1, 6, 4, 2, 4]]
  want = np.zeros((6, 8), bool)
  want[1:4, 2:6] = True
  np.testing.assert_array_equal(sets.mask_of(square, 6, 8), want)
  np.testing.assert_array_equal(
      sets.mask_of(objects.runs_of(want), 6, 8), want)
  runs = coco.encode(np.asfortranarray(want.astype(np.uint8)))
  np.testing.assert_array_equal(sets.mask_of(
      runs | {'counts': runs['counts'].decode()}, 6, 8), want)
  assert not sets.mask_of([], 6, 8).any()
  with pytest.raises(ValueError, match='6 rows and 9 columns'):
    sets.mask_of(objects.runs_of(want), 6, 9)


def test_masks_that_overlap_lie_in_layers():
  masks = np.zeros((3, 4, 4), bool)
  masks[0, :2], masks[1, 1:3], masks[2, 3:] = True, True, True
  layers = sets.layered(masks, (4, 4))
  assert layers.shape == (2, 4, 4)
  got = sets.Segments(layers, np.zeros(3, np.int32), np.zeros(3, bool))
  np.testing.assert_array_equal(got.masks, masks)


def test_a_crop_has_its_largest_segments_and_no_crowd():
  layers = np.zeros((1, 20, 30), np.int32)
  layers[0, :, :12], layers[0, :, 12:22], layers[0, :, 22:] = 1, 2, 3
  some = sets.Segments(layers, np.array([5, 6, 7], np.int32), np.array(
      [False, False, True]))
  picture = Image.fromarray(np.uint8(np.repeat(
      layers[0, ..., None] * 60, 3, axis=-1)))
  make = map_crops.Jittered(16, (1.5, 2.0), most=2)
  seen = set()
  for seed in range(20):
    got = make(picture, some, np.random.default_rng(seed))
    masks = np.unpackbits(got['masks'], axis=-1)
    assert got['image'].shape == (16, 16, 3) and masks.shape == (2, 16, 16)
    kinds = [int(k) for k in got['kinds'] if k >= 0]
    assert kinds == sorted(kinds) and set(kinds) <= {5, 6}
    for kind, mask in zip(got['kinds'], masks, strict=True):
      value = {5: 60, 6: 120}.get(int(kind))
      inside = mask.astype(bool)
      # The image is interpolated at edges, and masks are not.
      off = np.abs(got['image'][..., 0].astype(int) - (value or 0))[inside]
      assert value is None or np.mean(off < 2) > 0.3
      assert (kind < 0) == (not inside.any())
    seen |= set(kinds)
  assert seen == {5, 6}
  alone = map_crops.Jittered(16, (0.5, 0.5), most=1)(
      picture, some, np.random.default_rng(0))
  assert list(alone['kinds']) == [5]  # the larger
  rows, columns = 20 * 8 // 30, 8
  assert not alone['image'][rows:].any() and not alone['image'][:, columns:
                                                               ].any()


def test_packed_masks_are_the_targets_of_rows_that_count():
  rng = np.random.default_rng(0)
  masks = rng.integers(0, 2, (3, 2, 5, 12), np.uint8)
  kinds = np.array([[1, -1], [0, 2], [1, 1]], np.int32)
  got = jax.jit(task_lib.unpacked, static_argnums=3)(
      kinds, np.packbits(masks, axis=-1), np.float32([1, 1, 0]), 12)
  present = np.array([[1, 0], [1, 1], [0, 0]], bool)
  np.testing.assert_array_equal(got.present, present)
  np.testing.assert_array_equal(got.masks, masks * present[..., None, None])
  np.testing.assert_array_equal(got.classes, np.where(present, kinds, 0))


def test_the_classes_of_pixels_are_the_same_targets_either_way():
  labels = np.zeros((1, 8, 8), np.int32)
  labels[0, :, 3:] = 1
  task = task_lib.Masks(decoder=task_lib.mask_decoder.Config(
      8, 2, 2, num_queries=3), most_targets=2)
  weight = np.ones(1, np.float32)
  by_class = task.targets({'classes': labels, 'weight': weight})
  order = np.asarray(by_class.classes)[0]
  np.testing.assert_array_equal(order, [1, 0])  # the larger first
  by_segment = task.targets({
      'kinds': order[None], 'masks': np.packbits(
          labels[:, None] == order[None, :, None, None], axis=-1),
      'weight': weight, 'image': np.zeros((1, 8, 8, 3))})
  for name in ('classes', 'masks', 'present'):
    np.testing.assert_array_equal(*(
        getattr(x, name) for x in (by_class, by_segment)))


def test_only_some_queries_are_brought_to_the_image_and_nothing_changes():
  rng = np.random.default_rng(0)
  classes, masks = rng.normal(size=(9, 4)) * 4, rng.normal(size=(9, 8, 8)) * 3
  answer = squares.Answer(classes, masks, squares.letterbox.Letterbox(
      (30, 20), 32))
  whole = answer.at_image(np.arange(9))
  assert whole.shape == (9, 20, 30)
  np.testing.assert_array_equal(
      answer.panoptic((1,), 0.5, 0.5),
      answers.panoptic(classes, whole, (1,), threshold=0.5, overlap=0.5))
  wanted = answers.instances(classes, whole, top=7)
  for got, want in zip(answer.instances(7), wanted, strict=True):
    assert got.label == want.label
    np.testing.assert_allclose(got.score, want.score, rtol=1e-6)
    np.testing.assert_array_equal(got.mask, want.mask)


@pytest.mark.slow  # trainings of minutes
@pytest.mark.parametrize('kind, name, least, recipe', [
    ('panoptic', 'PQ', 60, 'masks'), ('instances', 'AP50', 55, 'masks'),
    ('panoptic', 'PQ', 60, 'eomt')])
def test_drawn_things_are_found(kind, name, least, recipe, drawn, tmp_path):
  counted = []
  settings = segments.Settings(**QUICK, steps=400, recipe=recipe)
  measured, = segments.run(test_dense.job(
      tmp_path, {part: (opened(drawn, part, kind),)
                 for part in ('train', 'test')}, progress=counted.append),
                           settings)
  scores = measured.scores()
  assert scores[name] > least, scores
  assert sum(counted) == segments.passes(settings, {'test': 6})
  assert set(measured.pictures) == {'test0', 'test5'}
  assert measured.head.task.answers == kind
  assert list(measured.rows['index']) == list(range(6))


def broken(root, change):
  """The objects of the test with a change of their list."""
  content = json.loads((root / 'test/instances.json').read_text())
  change(content)
  path = root / 'changed.json'
  path.write_text(json.dumps(content))
  return sets.opened(f'coco_instances:{path}?images={root}/test/images', '')


@pytest.mark.parametrize('change, words', [
    (lambda c: c['annotations'][0].update(image_id=1), 'of image 1 and'),
    (lambda c: c['annotations'][0].update(category_id=1), 'category 1, and'),
    (lambda c: c.pop('categories'), "no list of COCO .*'categories'"),
    (lambda c: c.update(images=[]), 'lists one of them nowhere')])
def test_a_damaged_list_is_a_sentence(change, words, drawn):
  with pytest.raises(errors.UserError, match=words):
    broken(drawn, change)


def test_what_is_wrong_with_one_image_names_it(drawn):
  def widen(content):
    content['images'][0]['width'] += 1
    for each in content['annotations']:
      if each['image_id'] == content['images'][0]['id']:
        each['segmentation'] = [[0, 0, 5, 0, 5, 5]]

  with pytest.raises(errors.UserError, match='000.png has segments of 49 × 40'):
    broken(drawn, widen)[0].decoded()
  with pytest.raises(errors.UserError, match='image 0 has no polygons'):
    broken(drawn, lambda c: c['annotations'][0].update(segmentation=3)
           )[0].decoded()


def test_a_colour_that_no_segment_has_is_a_sentence(drawn, tmp_path):
  content = json.loads((drawn / 'test/panoptic.json').read_text())
  content['annotations'][0]['segments_info'].pop()
  path = tmp_path / 'panoptic.json'
  path.write_text(json.dumps(content))
  source = sets.opened(f'coco_panoptic:{path}?images={drawn}/test/images&masks='
                       f'{drawn}/test/panoptic', '')
  with pytest.raises(errors.UserError, match='000.png has pixels of segment'):
    source[0].decoded()
  assert source[1].decoded()


def test_other_sets_and_kinds_are_refused(drawn, monkeypatch):
  with pytest.raises(errors.UserError, match='is no set of images with segm'):
    sets.opened('masks:somewhere', '')
  with pytest.raises(errors.UserError, match='val2017.json is missing'):
    sets.opened(f'coco_panoptic:{drawn}', 'val2017')
  whole, things = (opened(drawn, 'test', kind)
                   for kind in ('panoptic', 'instances'))
  with pytest.raises(errors.UserError, match='are of different kinds'):
    segments._check_same(whole, things)
  other = opened(drawn, 'test', 'instances')
  other.classes = ('box',)
  with pytest.raises(errors.UserError, match=r'other categories .*\(1 and 2'):
    segments._check_same(things, other)
  real = builtins.__import__

  def lacking(name, *rest):
    if name.startswith('pycocotools'):
      raise ImportError(name)
    return real(name, *rest)

  monkeypatch.setattr(builtins, '__import__', lacking)
  with pytest.raises(errors.UserError, match=r'pip install "dinojax\[coco\]"'):
    opened(drawn, 'test', 'instances')


def test_crops_that_are_no_whole_patches_are_refused():
  with pytest.raises(errors.UserError, match='set segments.crop_px=32'):
    segments.check(segments.Settings(crop_px=33), test_dense.CONFIG)
  with pytest.raises(errors.UserError, match='no least and greatest'):
    segments.check(segments.Settings(crop_px=32, scales=(2.0, 1.0)),
                   test_dense.CONFIG)
