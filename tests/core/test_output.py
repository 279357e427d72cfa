"""Lines that cannot be printed end nothing."""

import errno
import io
import os
import subprocess
import sys

import pytest

from dinojax.core import output

HEAD = 'import sys; from dinojax.core import output; output.install(); '


def run(code, **options):
  return subprocess.run([sys.executable, '-c', HEAD + code], timeout=20,
                        text=True, **options)


def test_a_closed_pipe_is_said_once_on_the_other_stream():
  reader, writer = os.pipe()
  os.close(reader)
  done = run('[print(i, flush=True) for i in range(9)]; sys.exit(3)',
             stdout=writer, stderr=subprocess.PIPE)
  os.close(writer)
  assert done.returncode == 3
  assert done.stderr.count('\n') == 1
  assert done.stderr.startswith('warning: stdout is closed or full (Broken')


def test_a_full_disk_under_a_log_ends_nothing():
  if not os.path.exists('/dev/full'):
    pytest.skip('this system has no /dev/full')
  with open('/dev/full', 'w') as full:
    done = run('[print(i, flush=True) for i in range(9)]', stdout=full,
               stderr=subprocess.PIPE)
  assert done.returncode == 0
  assert 'No space left' in done.stderr and done.stderr.count('\n') == 1


def test_both_streams_closed_end_nothing(tmp_path):
  file = tmp_path / 'done'
  code = HEAD + ('print("a", flush=True); print("b", file=sys.stderr); '
                 f'open({str(file)!r}, "w").close()')
  done = subprocess.run(['sh', '-c', '"$0" -c "$1" >&- 2>&-',
                         sys.executable, code], timeout=20)
  assert done.returncode == 0 and file.exists()


def test_what_has_space_again_is_written_again():
  class Full(io.StringIO):
    full = True

    def write(self, words):
      if self.full:
        raise OSError(errno.ENOSPC, 'No space left on device')
      return super().write(words)

  stream = Full()
  steady = output.Steady(stream, 'stdout')
  steady.write('lost')
  stream.full = False
  steady.write('kept')
  assert stream.getvalue() == 'kept'


def test_a_line_is_printed_below_what_moves_not_into_it(monkeypatch):
  stream = io.StringIO()
  err = output.Steady(stream, 'stderr')
  out_stream = io.StringIO()
  out = output.Steady(out_stream, 'stdout')
  err.rewrite('step 1')
  err.rewrite('step 2')
  out.write('a row\n')
  assert stream.getvalue() == '\r\x1b[2Kstep 1\r\x1b[2Kstep 2\r\x1b[2K'
  assert out_stream.getvalue() == 'a row\n'


def test_messages_are_sentences_without_place_or_prefix():
  done = run(
      'import warnings; from absl import flags, logging; '
      'flags.FLAGS.mark_as_parsed(); logging.use_absl_handler(); '
      'logging.warning("low"); '
      'logging.error("bad \\x1b[31m"); warnings.warn("old"); '
      'output.warn("näh\\nne")', stderr=subprocess.PIPE)
  assert done.stderr.splitlines() == [
      'warning: low', r'error: bad \x1b[31m', 'warning: old', 'warning: näh',
      'ne']


def test_a_stream_that_lacks_letters_shows_their_numbers():
  done = run('print("ü→")', stdout=subprocess.PIPE, env=os.environ | {
      'PYTHONIOENCODING': 'ascii'})
  assert done.stdout == '\\xfc\\u2192\n'


@pytest.mark.parametrize('columns, line', [
    (80, 'step 5 · loss 1 · wait 2 · ETA 3s'),
    (30, 'step 5 · loss 1 · ETA 3s'), (10, 'step 5 · ETA 3s')])
def test_the_least_important_is_left_out_of_a_long_line(columns, line):
  parts = [(0, 'step 5'), (1, 'loss 1'), (2, 'wait 2'), (0, 'ETA 3s')]
  assert output.fitted(parts, columns) == line
  assert len(parts) == 4
