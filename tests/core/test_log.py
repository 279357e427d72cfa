"""What a run writes of itself."""

import os
import pty
import subprocess
import sys

import pytest

from dinojax.core import log


def test_rows_of_later_steps_and_halves_of_lines_are_cut(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  path.write_bytes(b'{"step": 1}\n{"note": "kept"}\n{"step": 3}\n\0\0\0\n[1]\n'
                   b'{"step": 2, "lo')
  lines = log.JsonLines(path, cut_after=2)
  lines.write({'step': 3, 'x': float('nan'), 'y': float('inf')})
  lines.close()
  assert path.read_text() == (
      '{"step": 1}\n{"note": "kept"}\n'
      '{"step": 3, "x": "nan", "y": "inf"}\n')


def test_an_error_of_the_log_names_its_file(tmp_path):
  if not os.path.exists('/dev/full'):
    pytest.skip('this system has no /dev/full')
  lines = log.JsonLines(tmp_path / 'metrics.jsonl')
  lines._file = open('/dev/full', 'w')
  with pytest.raises(OSError, match='No space left') as caught:
    lines.write({'step': 1})
  assert caught.value.filename == str(tmp_path / 'metrics.jsonl')
  lines.close()


class Clock:
  now = 100.0

  def monotonic(self):
    return self.now


@pytest.fixture
def clock(monkeypatch):
  clock = Clock()
  monkeypatch.setattr(log, 'time', clock)
  return clock


def test_the_time_left_does_not_count_the_compiler(clock, capsys):
  progress = log.Progress(total_steps=110, start_step=0)
  clock.now += 500  # compiling
  progress.show(1, {'loss': '9'})
  for step in range(2, 11):
    clock.now += 2
    progress.tick(step)
  progress.show(10, {'loss': '8', 'data wait': '1%'})
  first, second = capsys.readouterr().err.splitlines()
  assert first == 'step 1/110 · loss 9 · ETA ?'
  assert second == 'step 10/110 · loss 8 · data wait 1% · ETA 3m20s'


def test_a_line_fits_eighty_columns(clock, capsys):
  progress = log.Progress(total_steps=10 ** 6, start_step=0)
  progress.show(123456, {name: '123456789' for name in 'abcdefgh'})
  line = capsys.readouterr().err.strip()
  assert len(line) <= 80 and line.endswith('ETA ?') and 'a 1234' in line


def test_a_terminal_sees_one_line_move_and_keeps_the_rows():
  """Each rewriting clears the line, and a row stands alone."""
  controller, terminal = pty.openpty()
  code = ('import time; from dinojax.core import log, output; '
          'output.install(); p = log.Progress(9, 0); p.show(1, {"loss": "5"}); '
          'log._MOVE_S = 0; p.tick(2); time.sleep(0.01); p.tick(3); '
          'p.show(4, {"loss": "4"})')
  subprocess.run([sys.executable, '-c', code], stderr=terminal, timeout=20,
                 env=os.environ | {'TERM': 'xterm', 'COLUMNS': '80'})
  os.close(terminal)
  text = b''
  while True:
    try:
      part = os.read(controller, 1000)
    except OSError:  # the other end is closed
      break
    if not part:
      break
    text += part
  pieces = text.decode().split('\r\x1b[2K')
  assert pieces[0] == 'step 1/9 · loss 5 · ETA ?\r\n'
  assert [p.partition(' · ')[0] for p in pieces[1:3]] == ['step 2/9',
                                                          'step 3/9']
  assert pieces[3].startswith('step 4/9 · loss 4') and len(pieces) == 4


def test_a_bar_without_a_terminal_is_a_line_now_and_then(clock, capsys):
  with log.Bar(100, unit='images', every_s=10.0) as bar:
    bar.show(20)
    for done in range(21, 101):
      clock.now += 1
      bar.show(done)
  lines = capsys.readouterr().err.splitlines()
  assert lines[0] == 'images 30/100 · 1.0 images/s · ETA 1m10s'
  assert lines[-1] == 'images 100/100 · 1.0 images/s · ETA 0s'
  assert len(lines) == 8


@pytest.mark.parametrize('seconds, text', [
    (-1, '0s'), (59.9, '59s'), (725, '12m05s'), (12000, '3h20m'),
    (187200, '2d04h')])
def test_durations(seconds, text):
  assert log.duration(seconds) == text


def events(folder):
  """(step, name, value) of all event files, and of starts, in order."""
  pb2 = pytest.importorskip('tensorboardX.proto.event_pb2')
  entries = []
  for path in sorted(folder.iterdir()):
    data = path.read_bytes()
    while data:  # length, its checksum, the event, its checksum
      size = int.from_bytes(data[:8], 'little')
      event, data = pb2.Event.FromString(data[12:12 + size]), data[16 + size:]
      if event.HasField('session_log'):
        entries.append((event.step, 'start', event.session_log.status))
      entries += [(event.step, v.tag, v.simple_value)
                  for v in event.summary.value]
  return entries


def test_tensorboard_gets_numbers_and_hides_later_steps(tmp_path):
  pytest.importorskip('tensorboardX')
  for start in (0, 5):
    board = log.TensorBoard(tmp_path, step=start, enabled=True)
    board.write(start + 1, {'step': start + 1, 'loss': 0.5, 'name': 'x'})
    board.close()
  assert events(tmp_path) == [
      (1, 'start', 1), (1, 'loss', 0.5), (6, 'start', 1), (6, 'loss', 0.5)]


def test_an_event_file_that_cannot_be_written_is_one_warning(tmp_path, capsys):
  pytest.importorskip('tensorboardX')
  (tmp_path / 'file').write_text('')
  board = log.TensorBoard(tmp_path / 'file' / 'in', step=0, enabled=True)
  board.write(1, {'loss': 1.0})
  board.write(2, {'loss': 1.0})
  board.close()
  text = capsys.readouterr().err
  assert text.count('warning:') == 1 and 'metrics.jsonl has all' in text


def test_tensorboard_may_be_turned_off(tmp_path):
  board = log.TensorBoard(tmp_path / 'no', step=0, enabled=False)
  board.write(1, {'loss': 1.0})
  board.close()
  assert not (tmp_path / 'no').exists()
