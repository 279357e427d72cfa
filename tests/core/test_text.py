"""What is printed can be printed, and does nothing to a terminal."""

import os
import subprocess
import sys

import numpy as np
import pytest

from dinojax.core import errors
from dinojax.core import text
from dinojax.data import crops
from dinojax.data import images
from dinojax.data import pipeline
from dinojax.data import sources
from dinojax.doctor import findings
from dinojax.features import stream

EVIL = 'x\x1b[2J\x1b]0;title\x07\nstep 99: all is well\x9b\u202e\u2028.png'
SAFE = r'x\x1b[2J\x1b]0;title\x07\nstep 99: all is well\x9b\u202e\u2028.png'


def test_a_name_is_one_line_that_does_nothing():
  assert text.printable(EVIL) == SAFE
  assert text.printable('caf\udce9.png') == r'caf\udce9.png'
  for plain in ('größe · 猫.jpg', '👩‍🔬.png', 'a b/c-d_e.jpg', 'नमस्ते'):
    assert text.printable(plain) == plain
  assert text.listed(['a\n', 'b', 'c', 'd', 'e']) == r'a\n, b, c, 2 more'


def test_errors_keep_their_lines_and_nothing_else():
  message = str(errors.UserError(f'two mistakes:\n  {EVIL}\tx'))
  assert '\x1b' not in message and message.count('\n') == 2
  assert '\x1b' not in findings.table('data', [findings.ok('a', EVIL)])
  assert '\\x1b' in findings.table('data', [findings.ok('a', EVIL)])


def test_a_reason_is_printable():
  with pytest.raises(images.BadImage) as error:
    with images.Decoding(1):
      raise RuntimeError('codec said \x1b[2J\nmore')
  assert error.value.reason == r'RuntimeError: codec said \x1b[2J'


@pytest.mark.parametrize('encoding', ['ascii', 'latin-1', 'utf-8'])
def test_every_stream_takes_every_text(encoding):
  code = ('from dinojax.core import text; text.let_everything_print(); '
          'import sys; print("60 images · caf\\udce9 猫"); '
          'print("·\\udce9", file=sys.stderr)')
  done = subprocess.run(
      [sys.executable, '-c', code], capture_output=True, check=True,
      env=os.environ | {'PYTHONIOENCODING': encoding})
  out = done.stdout.decode(encoding)
  assert r'\udce9' in out
  assert ('·' in out) == (encoding != 'ascii')


def test_names_left_out_of_an_evaluation_do_nothing_to_a_log(
    tmp_path, caplog):
  (tmp_path / EVIL.replace('/', '')).write_bytes(b'not an image')
  (tmp_path / os.fsdecode(b'caf\xe9.png')).write_bytes(b'')
  source = sources.open_source(f'folder:{tmp_path}')
  stream.warn(pipeline.records_in_order(source, np.asarray), source)
  assert r'x\x1b[2J' in caplog.text and r'caf\udce9.png' in caplog.text
  assert not {'\x1b', '\x07', '\udce9'} & set(caplog.text)
  with pytest.raises(errors.UserError, match=r'records .* in a row') as error:
    next(pipeline.train_batches(pipeline.Plan(
        ((source, 1),), seed=0, batch_size=2, group_images=2, masks=None,
        crops=crops.Crops(num_global=1, global_px=8, num_local=0),
        patch_px=8)))
  assert not {'\x1b', '\udce9'} & set(str(error.value))
