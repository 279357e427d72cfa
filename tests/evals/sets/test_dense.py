"""Layouts of masks and depths, each a miniature with a trap."""

import pathlib

import numpy as np
from PIL import Image
import pytest

from dinojax.configs.evals import kitti
from dinojax.core import errors
from dinojax.evals import registry
from dinojax.evals.protocols import depth as protocol
from dinojax.evals.sets import dense
from dinojax.evals.sets import depths
from dinojax.evals.sets import masks

SIZE = (6, 4)  # width, height


def photo(path, size=SIZE, mode='RGB'):
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  shape = (size[1], size[0]) + ((3,) if mode == 'RGB' else ())
  Image.fromarray(np.random.default_rng(0).integers(
      0, 255, shape, np.uint8)).save(path)


def mask(path, ids, palette=False, size=SIZE):
  """A mask whose first pixels are `ids`, the others the last of them."""
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  values = np.full(size[0] * size[1], ids[-1], np.uint8)
  values[:len(ids)] = ids
  picture = Image.fromarray(values.reshape(size[::-1]))
  if palette:  # colours that are not the ids
    picture = Image.fromarray(values.reshape(size[::-1]), 'P')
    picture.putpalette([255 - i // 3 for i in range(768)])
  picture.save(path)


def deep(path, values, size=SIZE):
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  whole = np.full(size[0] * size[1], values[-1], np.uint16)
  whole[:len(values)] = values
  Image.fromarray(whole.reshape(size[::-1])).save(path)


def first(source, count=3):
  return [float(x) for x in source[0].decoded()[1].ravel()[:count]]


def plain(folder, ids=(0, 1, 2), names=None):
  for stem in ('a', 'b'):
    photo(folder / 'images' / f'{stem}.jpg')
    mask(folder / 'masks' / f'{stem}.png', ids)
  if names:
    (folder / 'classes.txt').write_bytes(names)


def test_plain_masks_need_no_list(tmp_path):
  plain(tmp_path)
  source = masks.train(str(tmp_path))
  assert source.spec == f'masks:{tmp_path}' and len(source) == 2
  assert source.classes == ('class 0', 'class 1', 'class 2')
  assert first(source) == [0, 1, 2] and source.order() == ['a.jpg', 'b.jpg']
  # A mark at the start, and lines of Windows.
  plain(tmp_path, names='\ufeffsky\r\nroad\r\ncar\r\n'.encode())
  named = masks.test(f'masks:{tmp_path}')
  assert named.classes == ('sky', 'road', 'car')
  assert named.digest != source.digest


def test_ids_that_are_ignored(tmp_path):
  plain(tmp_path, (0, 1, 11), b'sky\nroad\n')
  with pytest.raises(errors.UserError, match=r'a\.png: .* the id 11, which is '
                     'none of the 2 classes'):
    masks.train(str(tmp_path))[0].decoded()
  source = masks.train(f'{tmp_path}?ignore=11')
  assert first(source) == [0, 1, dense.IGNORED]
  with pytest.raises(errors.UserError, match='ignored is no option of masks'):
    masks.train(f'masks:{tmp_path}?ignored=11')


def test_plain_mistakes_are_sentences(tmp_path):
  with pytest.raises(errors.UserError, match='is no set of masks, and no fold'):
    masks.train('nowhere')
  (tmp_path / 'images').mkdir()
  with pytest.raises(errors.UserError, match='/masks is missing; images stand'):
    masks.train(str(tmp_path))
  (tmp_path / 'masks').mkdir()
  with pytest.raises(errors.UserError, match='holds no image with its map'):
    masks.train(str(tmp_path))
  plain(tmp_path)
  photo(tmp_path / 'images' / 'c.jpg')
  with pytest.raises(errors.UserError, match=r'1 images have no file .*c\.jpg'):
    masks.train(str(tmp_path))
  photo(tmp_path / 'masks' / 'c.png')
  with pytest.raises(errors.UserError, match=r'c\.png: a mask in colours'):
    masks.train(str(tmp_path))[2].decoded()
  mask(tmp_path / 'masks' / 'c.png', (0, 1), size=(5, 4))
  with pytest.raises(errors.UserError, match='has 5 × 4 pixels, and its image '
                     '6 × 4'):
    masks.train(str(tmp_path))[2].decoded()


def test_depth_has_units(tmp_path):
  photo(tmp_path / 'images' / 'a.jpg')
  deep(tmp_path / 'depth' / 'a.png', (0, 1500, 65535))
  assert first(depths.train(str(tmp_path))) == [0, 1.5, pytest.approx(65.535)]
  scaled = depths.test(f'depth:{tmp_path}?scale=0.01')
  assert first(scaled, 2) == [0, 15]
  with pytest.raises(errors.UserError, match='scale=mm is no number above 0'):
    depths.test(f'depth:{tmp_path}?scale=mm')
  mask(tmp_path / 'depth' / 'a.png', (0, 200))
  with pytest.raises(errors.UserError, match='depths of 8 bits'):
    depths.train(str(tmp_path))[0].decoded()
  assert first(depths.train(f'{tmp_path}?scale=0.05'), 2) == [0, 10]


def ade(root):
  for part, name in (('training', 'train'), ('validation', 'val')):
    stem = f'ADE_{name}_00000001'
    photo(root / 'images' / part / f'{stem}.jpg', mode='L')  # a grey one
    mask(root / 'annotations' / part / f'{stem}.png', (0, 1, 150))
  (root / 'objectInfo150.txt').write_text('Idx\tRatio\tTrain\tVal\tName\n' + (
      '\n'.join(f'{i}\t0.1\t1\t1\tname {i}, other' for i in range(1, 151))))


def test_ade20k_moves_labels_down(tmp_path):
  ade(tmp_path)
  source = masks.train(f'ade20k:{tmp_path}')
  assert first(source) == [dense.IGNORED, 0, 149]
  assert source.classes[0] == 'name 1' and len(source.classes) == 150
  assert source.spec.endswith('?split=train')
  assert masks.test(f'ade20k:{tmp_path}').spec.endswith('?split=val')
  assert source[0].decoded()[0].mode == 'RGB'
  with pytest.raises(errors.UserError, match='split=test is not known'):
    masks.test(f'ade20k:{tmp_path}?split=test')
  (tmp_path / 'objectInfo150.txt').unlink()
  with pytest.raises(errors.UserError, match='objectInfo150.txt is missing; '
                     'unpack ADEChallengeData2016.zip'):
    masks.test(f'ade20k:{tmp_path}')


def test_voc_keeps_the_index_of_a_palette(tmp_path):
  root = tmp_path / 'VOC2012'
  photo(root / 'JPEGImages' / '2007_000027.jpg')
  mask(root / 'SegmentationClass' / '2007_000027.png', (0, 20, 255), True)
  lists = root / 'ImageSets' / 'Segmentation'
  lists.mkdir(parents=True)
  (lists / 'train.txt').write_bytes(b'\xef\xbb\xbf2007_000027\r\n\r\n')
  source = masks.train(f'voc2012:{tmp_path}')
  assert first(source) == [0, 20, dense.IGNORED]
  assert source.classes[20] == 'tvmonitor'
  with pytest.raises(errors.UserError, match=r'val\.txt is missing'):
    masks.test(f'voc2012:{tmp_path}')
  with pytest.raises(errors.UserError, match='trainaug needs Segmentation'):
    masks.train(f'voc2012:{tmp_path}?split=trainaug')
  mask(root / 'SegmentationClassAug' / '2007_000027.png', (15,))
  (lists / 'trainaug.txt').write_text(
      '/JPEGImages/2007_000027.jpg /SegmentationClassAug/2007_000027.png')
  assert first(masks.train(f'voc2012:{tmp_path}?split=trainaug'), 1) == [15]


def test_cityscapes_maps_its_ids(tmp_path):
  stem = 'aachen/aachen_000000_000019'
  photo(tmp_path / 'leftImg8bit' / 'train' / f'{stem}_leftImg8bit.png')
  mask(tmp_path / 'gtFine' / 'train' / f'{stem}_gtFine_labelIds.png',
       (0, 7, 33, 255, 26))
  source = masks.train(f'cityscapes:{tmp_path}')
  assert first(source, 5) == [dense.IGNORED, 0, 18, dense.IGNORED, 13]
  with pytest.raises(errors.UserError, match='split=test has no labels'):
    masks.train(f'cityscapes:{tmp_path}?split=test')
  photo(tmp_path / 'leftImg8bit' / 'train' / 'aachen' /
        'aachen_000001_000019_leftImg8bit.png')
  with pytest.raises(errors.UserError, match='000001_000019_gtFine_labelIds'):
    masks.train(f'cityscapes:{tmp_path}')


def test_images_from_above(tmp_path):
  for scene, name in (('Urban', '1'), ('Rural', '2')):
    below = tmp_path / 'Train' / scene
    photo(below / 'images_png' / f'{name}.png')
    mask(below / 'masks_png' / f'{name}.png', (0, 1, 7))
  both = masks.train(f'loveda:{tmp_path}')
  assert len(both) == 2 and first(both) == [dense.IGNORED, 0, 6]
  urban = masks.train(f'loveda:{tmp_path}?scene=Urban')
  assert len(urban) == 1 and urban.spec != both.spec
  photo(tmp_path / 'isaid' / 'val' / 'images' / 'P0000.png')
  place = tmp_path / 'isaid' / 'val' / 'Semantic_masks' / 'images'
  place.mkdir(parents=True)
  colors = np.zeros((*SIZE[::-1], 3), np.uint8)
  colors[0, 0], colors[0, 1] = (0, 0, 63), (0, 100, 155)
  target = place / 'P0000_instance_color_RGB.png'
  Image.fromarray(colors).save(target)
  source = masks.test(f'isaid:{tmp_path}/isaid')
  assert first(source) == [1, 15, 0] and source.classes[15] == 'harbor'
  colors[0, 0] = (1, 2, 3)
  Image.fromarray(colors).save(target)
  with pytest.raises(errors.UserError, match=r'the colour \(1, 2, 3\)'):
    source[0].decoded()


def test_nyu_rows_begin_with_a_slash(tmp_path):
  photo(tmp_path / 'sync' / 'kitchen' / 'rgb_00045.jpg', (640, 480))
  deep(tmp_path / 'sync' / 'kitchen' / 'sync_depth_00045.png', (0, 2000),
       (640, 480))
  (tmp_path / 'nyudepthv2_train_files_with_gt.txt').write_text(
      '/kitchen/rgb_00045.jpg /kitchen/sync_depth_00045.png 518.8579')
  source = depths.train(f'nyu:{tmp_path}')
  picture, depth = source[0].decoded()
  assert picture.size == (565, 427) and depth.shape == (427, 565)
  assert depth.max() == 2 and depth.min() == 2  # the border is cut away
  with pytest.raises(errors.UserError, match='nyudepthv2_test_files_with_gt'):
    depths.test(f'nyu:{tmp_path}')
  (tmp_path / 'nyu_test.txt').write_text('bath/rgb_1.jpg bath/d_1.png 518.9')
  with pytest.raises(errors.UserError, match=r'bath/rgb_1\.jpg is missing'):
    depths.test(f'nyu:{tmp_path}')


def test_kitti_leaves_out_what_has_no_truth(tmp_path):
  drive = '2011_09_26/2011_09_26_drive_0002_sync'
  truth = '2011_09_26_drive_0002_sync/proj_depth/groundtruth/image_02'
  photo(tmp_path / 'raw' / drive / 'image_02/data/0000000069.png', (1242, 375))
  deep(tmp_path / 'val' / truth / '0000000069.png', (0, 2560), (1242, 375))
  (tmp_path / 'eigen_test_files_with_gt.txt').write_text(
      f'{drive}/image_02/data/0000000069.png {truth}/0000000069.png 721.5\n'
      f'{drive}/image_02/data/0000000070.png None 721.5')
  source = depths.test(f'kitti:{tmp_path}')
  picture, depth = source[0].decoded()
  assert len(source) == 1 and source.left_out == 1
  assert picture.size == (1216, 352) and depth.max() == 10
  settings = registry.read(kitti.get_config(str(tmp_path))).depth
  assert (settings.box, settings.max_depth) == ('kitti_garg', 80)
  assert len(protocol.ROLES['test'].opens(*settings.test)) == 1
  (tmp_path / 'val' / truth / '0000000069.png').unlink()
  with pytest.raises(errors.UserError, match='0000000069.png is missing'):
    depths.test(f'kitti:{tmp_path}')


def test_sun_has_two_encodings(tmp_path):
  zoe, official = tmp_path / 'zoe', tmp_path / 'official'
  photo(zoe / 'test/rgb/rgb' / '1.jpg')
  deep(zoe / 'gt/gt' / '1.png', (0, 1500, 9000))
  assert first(depths.test(f'sunrgbd:{zoe}')) == [0, 1.5, 0]  # beyond 8 m
  frame = official / 'kv1' / 'b3' / '0001'
  photo(frame / 'image' / '0001.jpg')
  value = 1500
  deep(frame / 'depth' / '0001.png', (
      0, ((value << 3) | (value >> 13)) & 0xffff))
  source = depths.test(f'sunrgbd:{official}')
  assert len(source) == 1 and first(source, 2) == [0, 1.5]
