"""Miniatures of the ImageNet family, each with a trap."""

import io
import json
import pickle

import numpy as np
from PIL import Image
import pytest
from scipy import io as scipy_io

from dinojax.core import errors
from dinojax.evals import registry
from dinojax.evals.sets import images

WNIDS = ('n01440764', 'n01443537', 'n15075141')


def image(path, size=(8, 8), color=(9, 9, 9)):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.new('RGB', size, color).save(path)


def by_label(source):
  return [(name, source.classes[label]) for name, label in zip(
      source.order(), source.labels(), strict=True)]


@pytest.fixture
def whole(tmp_path):
  """Train and validation in folders; labels of three classes."""
  for i, wnid in enumerate(WNIDS):
    image(tmp_path / 'train' / wnid / f'{wnid}_7.JPEG')
    image(tmp_path / 'val' / wnid / f'ILSVRC2012_val_{3 - i:08d}.JPEG')
  (tmp_path / 'train' / 'README.md').write_text('no class')
  return tmp_path


def test_folders_are_sorted_wnids(whole):
  train = images.open_source(f'imagenet:{whole}?split=train')
  assert train.classes == WNIDS and train.labels() == [0, 1, 2]
  assert images.open_source(f'imagenet:{whole}').labels() == [0, 1, 2]
  assert pickle.loads(pickle.dumps(train))[1].label == 1
  with pytest.raises(errors.UserError, match='split=test: use val or train'):
    images.open_source(f'imagenet:{whole}?split=test')


def test_a_flat_validation_has_the_numbers_of_the_devkit(tmp_path):
  """Trap: the devkit counts classes in another order, and has parents."""
  for number in (1, 2, 3):
    image(tmp_path / 'val' / f'ILSVRC2012_val_{number:08d}.JPEG')
  with pytest.raises(errors.UserError, match='meta.mat is missing'):
    images.open_source(f'imagenet:{tmp_path}')
  data = tmp_path / 'ILSVRC2012_devkit_t12' / 'data'
  data.mkdir(parents=True)
  kind = [('ILSVRC2012_ID', 'O'), ('WNID', 'O'), ('num_children', 'O')]
  rows = [(1, WNIDS[2], 0), (2, WNIDS[0], 0), (3, WNIDS[1], 0),
          (4, 'n00000001', 3)]
  scipy_io.savemat(data / 'meta.mat', {'synsets': np.array(rows, kind)})
  (data / 'ILSVRC2012_validation_ground_truth.txt').write_bytes(
      b'1\r\n3\r\n2')
  source = images.open_source(f'imagenet:{tmp_path}')
  assert source.classes == WNIDS
  assert [wnid for _, wnid in by_label(source)] == [
      WNIDS[2], WNIDS[1], WNIDS[0]]


def test_real_labels_belong_to_numbers_of_files(whole):
  (whole / 'real.json').write_text(json.dumps([[2], [], [0, 1]]))
  source = images.open_source(f'imagenet-real:{whole}')
  rights = dict(zip(source.order(), source.label_sets.tolist(), strict=True))
  assert rights == {f'{WNIDS[0]}/ILSVRC2012_val_00000003.JPEG': [0, 1],
                    f'{WNIDS[1]}/ILSVRC2012_val_00000002.JPEG': [-1, -1],
                    f'{WNIDS[2]}/ILSVRC2012_val_00000001.JPEG': [2, -1]}
  (whole / 'real.json').write_text(json.dumps([[2], [], [5]]))
  with pytest.raises(errors.UserError, match='has class 5, and 3 classes'):
    images.open_source(f'imagenet-real:{whole}')


def test_v2_counts_its_folders(whole, tmp_path):
  """Trap: as words, 10 comes before 2."""
  file = tmp_path / 'wnids.txt'
  wnids = [f'n{i:08d}' for i in range(12)]
  file.write_bytes(b'\xef\xbb\xbf' + '\r\n'.join(wnids[::-1]).encode())
  for number in (0, 2, 10):
    image(tmp_path / 'v2' / str(number) / 'a.jpeg')
  source = images.open_source(f'imagenet-v2:{tmp_path}/v2?classes={file}')
  assert source.labels() == [0, 2, 10]
  assert [wnid for _, wnid in by_label(source)] == [
      wnids[0], wnids[2], wnids[10]]
  with pytest.raises(errors.UserError, match=r'add \?classes=DIR'):
    images.open_source(f'imagenet-v2:{tmp_path}/v2')
  with pytest.raises(errors.UserError, match='class 10, and 3 classes'):
    images.open_source(f'imagenet-v2:{tmp_path}/v2?classes={whole}')


def test_answers_of_a_and_r_are_among_their_own_classes(tmp_path):
  """Trap: a README beside the folders."""
  for wnid in WNIDS[1:]:
    image(tmp_path / wnid / 'x.jpg')
  (tmp_path / 'README.txt').write_text('no class')
  for scheme in ('imagenet-a', 'imagenet-r'):
    source = images.open_source(f'{scheme}:{tmp_path}')
    assert source.classes == WNIDS[1:] and list(source.subset) == [0, 1]
  sketch = images.open_source(f'imagenet-sketch:{tmp_path}')
  assert sketch.subset is None and len(sketch) == 2
  with pytest.raises(errors.UserError, match='folder of a wnid is missing'):
    images.open_source(f'imagenet-a:{tmp_path}/nothing')


def test_c_knows_corruption_and_level(tmp_path):
  for place in ('fog/1', 'fog/3', 'snow/5'):
    image(tmp_path / place / WNIDS[1] / 'ILSVRC2012_val_00000001.JPEG')
  image(tmp_path / 'snow/5' / WNIDS[0] / 'ILSVRC2012_val_00000002.JPEG')
  source = images.open_source(f'imagenet-c:{tmp_path}')
  assert list(source.columns['level']) == [5, 5, 1, 3]
  assert list(source.columns['corruption']) == [7, 7, 9, 9]
  assert source.labels() == [0, 1, 1, 1]
  with pytest.raises(errors.UserError, match='gaussian_noise or any other'):
    images.open_source(f'imagenet-c:{tmp_path}/fog')


@pytest.fixture
def objectnet(tmp_path):
  image(tmp_path / 'images' / 'air_freshener' / 'a.png', color=(255, 0, 0))
  inner = Image.new('RGB', (12, 10), (255, 0, 0))
  inner.paste((0, 0, 9), (2, 2, 10, 8))
  path = tmp_path / 'images' / 'bench_x' / 'b.png'
  path.parent.mkdir()
  inner.save(path)
  folder = tmp_path / 'mappings'
  folder.mkdir()
  for name, content in (
      ('folder_to_objectnet_label', {'air_freshener': 'Air freshener',
                                     'bench_x': 'Bench'}),
      ('objectnet_to_imagenet_1k', {'Bench': 'park bench; bench, seat'}),
      ('pytorch_to_imagenet_2012_id', {'0': 2, '1': 0, '2': 1})):
    (folder / f'{name}.json').write_text(json.dumps(content))
  (folder / 'imagenet_to_label_2012_v2').write_text(
      'park bench \nfish\nbench, seat\n')
  (tmp_path / 'labels.txt').write_text(
      '\n'.join(f'{wnid},"a, b"' for wnid in WNIDS))
  return tmp_path


def test_objectnet_follows_its_chain_and_cuts_the_border(objectnet):
  source = images.open_source(
      f'objectnet:{objectnet}?classes={objectnet}/labels.txt')
  assert source.order() == ['bench_x/b.png']  # the other is in no ImageNet
  assert source.label_sets.tolist() == [[0, 1]]
  with Image.open(io.BytesIO(source[0].image)) as inner:
    assert inner.size == (8, 6)
    assert (np.asarray(inner.convert('RGB')) == (0, 0, 9)).all()


def test_nobody_trains_on_objectnet(objectnet):
  spec = f'objectnet:{objectnet}?classes={objectnet}/labels.txt'
  settings = registry.read({'data': {'train': spec, 'test': (spec,)}})
  with pytest.raises(errors.UserError, match='allow no training'):
    registry.opened('knn', settings)
  (objectnet / 'mappings' / 'folder_to_objectnet_label.json').unlink()
  with pytest.raises(errors.UserError,
                     match='folder_to_objectnet_label.json is missing'):
    images.open_source(spec)
