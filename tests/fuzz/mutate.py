"""Seeded damage to a file, and what a reader makes of it in a child process.

    outcomes = mutate.outcomes(
        data, 'tests.fuzz.readers:image', tries=200, seed=1)
    assert not outcomes.faults, outcomes.report()

A reader is a function of a module: it takes the damaged bytes and returns a
word for what came of them ('read', 'refused'), having caught the errors that
it may raise. Everything else is a fault: another exception, the death of the
process, more than 2 GiB, more than 10 s. Mutant number i of a seed is always
the same bytes (`mutant`), so a fault is kept as a test by its number or bytes.

One child makes many tries; it is started again after a fault that ends it. It
works in an empty folder of its own, which readers of files may write into.
"""

import collections
from collections.abc import Sequence
import dataclasses
import importlib
import json
import os
import pathlib
import random
import resource
import select
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).parents[2]
MAX_BYTES = 2 * 2**30  # more than before the try
MAX_S = 10.0
_MOST_FAULTS = 50  # of children that end; then the rest is not tried
_PATIENCE = 4  # times the seconds, for a child that is kept waiting
_START_S = 120.0  # imports of a child, on a busy machine
# Freed memory goes back to the system, so that what a try takes is measured.
_STEADY = {'MALLOC_ARENA_MAX': '2', 'MALLOC_MMAP_THRESHOLD_': '65536',
           'MALLOC_TRIM_THRESHOLD_': '65536'}
# Sizes and offsets at which arithmetic of readers breaks.
_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000,
            0xFFFFFFFF, 0x7FFFFFFFFFFFFFFF, 0xFFFFFFFFFFFFFFFF)


@dataclasses.dataclass(frozen=True)
class Fault:
  """A try that ended as none may.

  Attributes:
    number: of the mutant.
    what: the exception, 'died: …', 'memory: …' or 'time: …'.
    data: the bytes that did it.
  """

  number: int
  what: str
  data: bytes


@dataclasses.dataclass
class Outcomes:
  """What became of all tries.

  Attributes:
    counts: how often each word was returned.
    faults: what may not happen.
    stderr: bytes that the children wrote there.
  """

  counts: collections.Counter
  faults: list[Fault]
  stderr: bytes = b''

  def report(self) -> str:
    """Says what went wrong, the first bytes in hexadecimal."""
    lines = [f'{sum(self.counts.values())} tries: {dict(self.counts)}']
    lines += [f'mutant {fault.number}: {fault.what}\n  {fault.data[:400].hex()}'
              for fault in self.faults[:10]]
    return '\n'.join([*lines, self.stderr[-2000:].decode(errors='replace')])


def mutant(data: bytes, seed: int, number: int) -> bytes:
  """A damaged copy: one to four changes, cuts and insertions."""
  rng = random.Random(f'{seed}/{number}')
  for _ in range(rng.choice((1, 1, 1, 2, 4))):
    data = rng.choice(_CHANGES)(data, rng)
  return data


def outcomes(data: bytes | Sequence[bytes], reader: str, tries: int,
             seed: int, *, max_s: float = MAX_S,
             max_bytes: int = MAX_BYTES) -> Outcomes:
  """Gives `tries` mutants to a reader.

  Args:
    data: whole files, which are damaged in turn; each must itself be read
      without a fault, and is tried first.
    reader: 'module:function'.
    tries: in all, at least.
    seed: of the damage.
    max_s: seconds that a try may take.
    max_bytes: memory that it may take, beyond what there was before.

  Raises:
    RuntimeError: the reader cannot be imported, or refuses a whole file.
  """
  seeds = [data] if isinstance(data, bytes) else list(data)
  out = Outcomes(collections.Counter(), [])
  with tempfile.TemporaryDirectory() as folder:
    files = [pathlib.Path(folder) / f'seed-{i}' for i in range(len(seeds))]
    for file, content in zip(files, seeds, strict=True):
      file.write_bytes(content)
    number = 0
    while number < tries and len(out.faults) < _MOST_FAULTS:
      number = _child(files, reader, number, tries, seed, out, max_s,
                      max_bytes)
  return out


def _change(data: bytes, rng: random.Random) -> bytes:
  """Another byte, another bit, or bytes next to each other."""
  if not data:
    return data
  place = rng.randrange(len(data))
  new = rng.choice((rng.randrange(256), data[place] ^ 1 << rng.randrange(8)))
  return data[:place] + bytes([new]) + data[place + 1:]


def _head(data: bytes, rng: random.Random) -> bytes:
  """A change among the first bytes, where headers are."""
  return _change(data[:64], rng) + data[64:]


def _number(data: bytes, rng: random.Random) -> bytes:
  """A number of two to eight bytes, of a value at which readers break."""
  size = rng.choice((2, 4, 4, 8))
  value = rng.choice(_NUMBERS) % 256**size
  place = rng.randrange(max(len(data) - size, 0) + 1)
  raw = value.to_bytes(size, rng.choice(('little', 'big')))
  return data[:place] + raw + data[place + size:]


def _span(data: bytes, rng: random.Random) -> tuple[int, int]:
  start = rng.randrange(len(data) + 1)
  return start, start + rng.choice((1, 2, 4, rng.randrange(len(data) + 1)))


def _cut(data: bytes, rng: random.Random) -> bytes:
  start, stop = _span(data, rng)
  return data[:start] + data[stop:]


def _end(data: bytes, rng: random.Random) -> bytes:
  return data[:rng.randrange(len(data) + 1)]


def _insert(data: bytes, rng: random.Random) -> bytes:
  start, _ = _span(data, rng)
  return data[:start] + rng.randbytes(rng.choice((1, 2, 4, 64))) + data[start:]


def _repeat(data: bytes, rng: random.Random) -> bytes:
  """A piece once more, somewhere else."""
  start, stop = _span(data, rng)
  place = rng.randrange(len(data) + 1)
  return data[:place] + data[start:stop] + data[place:]


_CHANGES = (_change, _change, _head, _head, _number, _number, _cut, _end,
            _insert, _repeat)


def _child(files, reader, number, tries, seed, out, max_s, max_bytes) -> int:
  """One child from mutant `number` on; returns where the next begins."""
  with tempfile.TemporaryDirectory() as place, tempfile.TemporaryFile() as log:
    process = subprocess.Popen(
        [sys.executable, '-m', 'tests.fuzz.mutate', reader, place,
         *map(str, (number, tries, seed, max_bytes, *files))],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=log,
        env=os.environ | {'JAX_PLATFORMS': 'cpu', **_STEADY})
    try:
      # Its first line comes after the imports and the undamaged files.
      lines = _Lines(process)
      ready = lines.next(_START_S)
      while ready and number < tries:
        line = lines.next(max_s)
        kind, text = json.loads(line) if line else (
            'end', f'died: exit status {process.wait()}' if line == b''
            else f'time: more than {max_s:g} s')
        out.counts[text if kind == 'word' else 'fault'] += 1
        number += 1
        if kind != 'word':
          content = files[(number - 1) % len(files)].read_bytes()
          out.faults.append(Fault(
              number - 1, text, mutant(content, seed, number - 1)))
        if kind == 'end':
          break
    finally:
      process.kill()
      process.wait()
      process.stdout.close()
    log.seek(0)
    written = log.read()
  if not ready:
    raise RuntimeError(
        f'{reader} does not start: {written[-2000:].decode(errors="replace")}')
  out.stderr += written
  return number


class _Lines:
  """Lines of a pipe that come in time; no buffer hides them from `select`."""

  def __init__(self, process):
    self._process, self._held = process, b''
    self._number = process.stdout.fileno()

  def next(self, seconds: float) -> bytes | None:
    """The next line; b'' at the end, None when it does not come in time."""
    before, turns = self._cpu_s(), 0
    while b'\n' not in self._held:
      if not select.select([self._number], [], [], seconds)[0]:
        # On a busy machine a try may wait for its turn, but not for ever.
        turns += 1
        if turns == _PATIENCE or self._cpu_s() - before >= seconds:
          return None
        continue
      piece = os.read(self._number, 2**16)
      if not piece:
        return b''
      self._held += piece
    line, _, self._held = self._held.partition(b'\n')
    return line

  def _cpu_s(self) -> float:
    """Seconds of a processor that the child has used; 0 at its end."""
    try:
      with open(f'/proc/{self._process.pid}/stat') as file:
        fields = file.read().rpartition(')')[2].split()
    except OSError:
      return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')


def _memory(key: str) -> int:
  """Bytes of this process: VmRSS, VmHWM (the peak), VmSize."""
  with open('/proc/self/status') as file:
    return next(int(line.split()[1]) * 1024 for line in file
                if line.startswith(key))


def _one(read, data: bytes, most: int) -> tuple[str, str]:
  """(kind, text) of one try; `most` bytes are allowed in all."""
  try:
    word = read(data)
  except BaseException as error:  # this is what is looked for
    return 'fault', f'{type(error).__name__}: {error}'[:500]
  peak = _memory('VmHWM')
  if peak > most:
    with open('/proc/self/clear_refs', 'w') as file:
      file.write('5')  # the next peak is of the next try
    return 'fault', f'memory: {peak / 2**30:.2f} GiB'
  return 'word', word


def _work(reader: str, place: str, number: int, tries: int, seed: int,
          max_bytes: int, files: list[str]):
  """The child: a JSON line for each try, on what was its stdout."""
  lines = os.fdopen(os.dup(1), 'w', encoding='utf-8')
  os.dup2(2, 1)  # what a reader prints is not a line of ours
  module, _, name = reader.partition(':')
  read = getattr(importlib.import_module(module), name)
  seeds = [pathlib.Path(file).read_bytes() for file in files]
  os.chdir(place)
  tell = lambda *line: print(json.dumps(line), file=lines, flush=True)
  most = _memory('VmRSS') + max_bytes
  for data in seeds:
    kind, text = _one(read, data, most)
    if kind == 'fault':
      raise RuntimeError(f'the undamaged file is not read: {text}')
  # A guard of the machine; the limit itself is measured.
  guard = _memory('VmSize') + 2 * MAX_BYTES
  resource.setrlimit(resource.RLIMIT_AS, (guard, guard))
  tell('ready', '')
  for i in range(number, tries):
    tell(*_one(read, mutant(seeds[i % len(seeds)], seed, i), most))


if __name__ == '__main__':
  _work(*sys.argv[1:3], *map(int, sys.argv[3:7]), sys.argv[7:])
