"""What is printed can be printed, and does nothing to a terminal."""

import os
import subprocess
import sys

import pytest

from dinojax.core import errors
from dinojax.core import findings
from dinojax.core import text
from dinojax.data import images

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
