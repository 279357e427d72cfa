"""Images with several labels: CSV files, and a miniature of VOC 2007."""

import pytest

from dinojax.core import errors
from dinojax.evals.protocols import fairness
from dinojax.evals.protocols import multilabel
from dinojax.evals.sets import fine_grained
from dinojax.evals.sets import voc_labels


def test_lines_of_an_image_are_its_labels(tmp_path):
  (tmp_path / 'a.png').touch()
  path = tmp_path / 'labels.csv'
  path.write_bytes(b'\xef\xbb\xbfimage,label\r\na.png,dog\r\nb.png,\r\n'
                   b'a.png,cat\r\n')
  source = multilabel.open_set(f'labels:{path}')
  assert source.order() == ['a.png', 'b.png']
  assert source.classes == ('cat', 'dog')
  assert source.targets.tolist() == [[1, 1], [0, 0]]
  assert source.targets_as(('dog', 'cow')).tolist() == [[1, 0], [0, 0]]
  first = source.digest
  path.write_text(path.read_text().replace('a.png,cat', 'b.png,cat'))
  assert multilabel.open_set(f'labels:{path}').digest != first
  with pytest.raises(errors.UserError, match='no column of groups'):
    fairness.open_groups(f'labels:{path}')
  with pytest.raises(errors.UserError, match='no set with several labels'):
    multilabel.open_set(f'folder:{tmp_path}')


def test_other_columns_are_groups(tmp_path):
  (tmp_path / 'a.png').touch()
  path = tmp_path / 'labels.csv'
  path.write_text('image,labels,region\na.png,cat; dog,Asia\nb.png,cow,\n')
  source = fairness.open_groups(f'labels:{path}')
  assert source.targets.tolist() == [[1, 0, 1], [0, 1, 0]]
  assert source.groups['region'].tolist() == ['Asia', '']
  path.write_text('image,label,region\na.png,cat,Asia\na.png,dog,Europe\n')
  with pytest.raises(errors.UserError, match='every image the same groups'):
    fairness.open_groups(f'labels:{path}')
  path.write_text('image,label,region\nc.png,cat,Asia\n')
  with pytest.raises(errors.UserError, match='c.png is missing'):
    fairness.open_groups(f'labels:{path}')


def test_voc_leaves_difficult_objects_out(tmp_path):
  """Traps: two blanks before a label, and 0 for difficult objects."""
  root = tmp_path / 'VOCdevkit' / 'VOC2007'
  main = root / 'ImageSets' / 'Main'
  main.mkdir(parents=True)
  (root / 'JPEGImages').mkdir()
  for name in voc_labels.CLASSES:
    (main / f'{name}_test.txt').write_text('000005 -1\n000007  1')
  (main / 'dog_test.txt').write_text('000005  0\n000007 -1\n')
  with pytest.raises(errors.UserError, match='000005.jpg is missing'):
    multilabel.open_set(f'voc2007:{tmp_path}')
  (root / 'JPEGImages' / '000005.jpg').touch()
  source = multilabel.open_set(f'voc2007:{tmp_path}?split=test')
  assert source.order() == ['000005.jpg', '000007.jpg']
  dog, cat = (voc_labels.CLASSES.index(name) for name in ('dog', 'cat'))
  assert source.targets[:, dog].tolist() == [-1, 0]
  assert source.targets[:, cat].tolist() == [0, 1]
  with pytest.raises(errors.UserError, match='aeroplane_train.txt is missing'):
    multilabel.open_set(f'voc2007:{tmp_path}?split=train')
  with pytest.raises(errors.UserError, match='one of test, trainval'):
    multilabel.open_set(f'voc2007:{tmp_path}?split=tests')


def test_papers_scores_follow_from_names():
  assert fine_grained.score_of('tfds:oxford_iiit_pet/test') == 'mean per class'
  assert fine_grained.score_of('folder:/data/Aircraft/test') == (
      'mean per class')
  assert fine_grained.score_of('tfds:food101/validation') == 'top-1'
  assert fine_grained.score_of('folder:/data/carpets') == 'top-1'
