"""Sources of CSV files: the lines that are asked for, or a sentence."""

import io

import numpy as np
from PIL import Image
import pytest

from dinojax.core import errors
from dinojax.data import identity
from dinojax.data import sources

LINES = ('image,class,part\r\n'
         'a/1.png,dog,train\r\n'
         'a/2.png,cat,train\r\n'
         '\r\n'
         'b 3.png,dog,test\r\n')


@pytest.fixture
def file(tmp_path):
  """A list as spreadsheets write it: a mark, CRLF, no end of line."""
  (tmp_path / 'a').mkdir()
  for i, name in enumerate(('a/1.png', 'a/2.png', 'b 3.png')):
    packed = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(packed, 'PNG')
    (tmp_path / name).write_bytes(packed.getvalue())
  path = tmp_path / 'list.csv'
  path.write_bytes(b'\xef\xbb\xbf' + LINES.encode().rstrip())
  return path


def records(spec):
  source = sources.open_source(spec)
  return [source[i] for i in range(len(source))], source


def test_lines_are_records_in_their_order(file):
  got, source = records(f'csv:{file}')
  assert [r.name for r in got] == ['a/1.png', 'a/2.png', 'b 3.png']
  assert source.classes == ('cat', 'dog')
  assert [r.label for r in got] == [1, 0, 1] == source.labels()
  assert source.class_counts() == [1, 2]
  assert got[2].image == (file.parent / 'b 3.png').read_bytes()


def test_some_lines(file):
  got, source = records(f'csv:{file}?part=train&class=dog')
  assert [r.name for r in got] == ['a/1.png'] and source.classes == ('dog',)
  assert records(f'csv:{file}?label_column=')[1].classes == ()
  assert records(f'csv:{file}?label_column=part')[1].classes == (
      'test', 'train')


def test_numbers_are_in_their_order(tmp_path):
  path = tmp_path / 'l.csv'
  path.write_text('file,label\na,10\nb,9\nc,x\n')
  assert sources.open_source(f'csv:{path}').classes == ('9', '10', 'x')


def test_a_changed_label_is_another_list(file):
  digest = lambda: identity.digest(identity.lines(
      sources.open_source(f'csv:{file}'), sizes=True))
  before = digest()
  file.write_bytes(file.read_bytes().replace(b'cat', b'cow'))
  assert digest() == before, 'numbers of classes are the same'
  file.write_bytes(file.read_bytes().replace(b'cow', b'dog'))
  assert digest() != before


@pytest.mark.parametrize('content, query, message', [
    (None, '', 'is missing'),
    (b'image,class\n', '', 'no rows below its first line'),
    (b'image,class\na,b,c\n', '', 'line 2 has 3 values, and the first line 2'),
    (b'photo,class\na,b\n', '', 'no column of images'),
    (b'image,class\na,b\n', '?part=x', 'no column part: its columns are image'),
    (b'image,class\na,b\n', '?class=x', 'no line that fits: class has b'),
    (b'\xff\xfe', '', 'is not UTF-8 text')])
def test_wrong_lists_are_sentences(tmp_path, content, query, message):
  path = tmp_path / 'list.csv'
  if content is not None:
    path.write_bytes(content)
  with pytest.raises(errors.UserError, match=message):
    sources.open_source(f'csv:{path}{query}')
