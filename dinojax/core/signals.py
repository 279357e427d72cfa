"""Signals that ask a program to end, from its first line to its last.

Python's own handler raises wherever the program is, and that is lost in a
callback of the garbage collector and late in a long compilation. Here a thread
is told at once: where nothing is to be saved it ends the program with a
sentence; while something is, it leaves the end to `held`.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import multiprocessing
import os
import signal
import threading
import time

NAMES = {signal.SIGINT: 'Ctrl-C', signal.SIGTERM: 'SIGTERM'}
if hasattr(signal, 'SIGHUP'):
  NAMES[signal.SIGHUP] = 'a closed terminal (SIGHUP)'
# One Ctrl-C may come twice: from the terminal, and from a launcher.
_AGAIN_S = 1.0
_FLAG = '--stopped_exit_code'


def stopped_exit_code(argv: Sequence[str]) -> int:
  """Reads --stopped_exit_code before flags are parsed; 0 without it."""
  for word, after in zip(argv, (*argv[1:], ''), strict=True):
    name, _, value = word.partition('=')
    value = value or after
    if name in (_FLAG, _FLAG[1:]) and value.isdecimal():
      return int(value)
  return 0


def catchable() -> list[int]:
  """Signals to act on; what `nohup` made deaf stays so."""
  return [number for number in NAMES if number == signal.SIGINT
          or signal.getsignal(number) != signal.SIG_IGN]


class _Watch:
  """The thread of a program, and what it knows."""

  def __init__(self, advice: str, code: int | None):
    self.advice, self.code = advice, code
    self.lock = threading.Lock()
    self.held = 0  # how many want to end by themselves
    self.first = 0.0  # when a signal came while held
    self.reader, self.writer = os.pipe()
    os.set_blocking(self.writer, False)

  def start(self):
    """Takes the signals; the main thread's work."""
    self.before = {number: signal.signal(number, _pass)
                   for number in catchable()}
    self.wakeup = signal.set_wakeup_fd(
        self.writer, warn_on_full_buffer=False)
    threading.Thread(target=self.listen, daemon=True, name='signals').start()

  def stop(self):
    """Gives them back."""
    signal.set_wakeup_fd(self.wakeup)
    for number, handler in self.before.items():
      signal.signal(number, handler)
    os.close(self.writer)  # ends the thread

  def listen(self):
    """Waits for signals; Python writes their numbers as they come."""
    while numbers := os.read(self.reader, 1):
      if numbers[0] in NAMES:
        with self.lock:
          self.act(numbers[0])
    os.close(self.reader)

  def act(self, number: int):
    """Ends the program, or says that it will end."""
    now = time.monotonic()
    if not self.held:
      _end(f'stopped by {NAMES[number]}: {self.advice}', self.code_of(number))
    elif not self.first:
      self.first = now
      tell(f'{NAMES[number]}: saving after this step, then the end; Ctrl-C '
           'once more ends at once, without a save')
    elif number == signal.SIGINT and now - self.first > _AGAIN_S:
      _end('stopped at once by a second Ctrl-C, without a save: the same '
           'command continues from the last checkpoint', 128 + number)

  def code_of(self, number: int) -> int:
    """The exit code of an end by a signal."""
    return 128 + number if self.code is None else self.code


_active: _Watch | None = None


def _pass(number, frame):
  """The thread acts."""


def _end(text: str, code: int):
  """Ends the process as a kill would, but with a sentence."""
  tell(text)
  for child in multiprocessing.active_children():
    child.kill()  # workers are deaf to softer signals
  os._exit(code)


def tell(text: str):
  """A line on stderr, whatever another thread does with Python's own."""
  # A live line or a bar may stand there, and hide the cursor.
  clear = '\r\x1b[2K\x1b[?25h' if os.isatty(2) else ''
  with contextlib.suppress(OSError):
    os.write(2, f'{clear}{text}\n'.encode())


def watch(advice: str, code: int | None = None) -> Callable[[], None]:
  """From now on a signal ends this program with a sentence.

  Args:
    advice: end of the sentence: how to go on.
    code: exit code; None: 128 plus the signal's number.

  Returns:
    A function that ends the watch. It does nothing where none was begun:
    outside the main thread, or with a watch on already, of which only advice
    and code change.
  """
  global _active
  if threading.current_thread() is not threading.main_thread():
    return lambda: None
  if _active is not None:
    _active.advice, _active.code = advice, code
    return lambda: None
  _active = _Watch(advice, code)
  _active.start()
  return _unwatch


def _unwatch():
  global _active
  if _active is not None:
    _active.stop()
    _active = None


def is_watched() -> bool:
  """True while a watch is on, which then obeys a second Ctrl-C itself."""
  return _active is not None


@contextlib.contextmanager
def held() -> Iterator[None]:
  """Something is to be saved: whoever holds looks for signals itself."""
  watched = _active
  if watched is None:
    yield
    return
  with watched.lock:
    watched.held += 1
  try:
    yield
  finally:
    with watched.lock:
      watched.held -= 1
