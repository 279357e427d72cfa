"""Two sides of a comparison, each in a process of its own, that take turns.

Threads and peak memory are then each side's own. A side is made by a function
of a module, `make(side, options)`, which returns what is timed: a function of
nothing that returns an array, or a list of them.
"""

import ctypes
import gc
import multiprocessing
import statistics
import time

import numpy as np

SIDES = ('jax', 'torch')


def status_gib(name: str) -> float:
  """A value of this process's memory: VmRSS, or VmHWM, its peak."""
  with open('/proc/self/status') as f:
    line, = (line for line in f if line.startswith(name))
  return int(line.split()[1]) / 2**20


def serve(connection, make, side: str, options):
  """Runs one side on request, and tells its time and its memory."""
  run = make(side, options)
  connection.send(arrays(run()))
  whole = status_gib('VmHWM')
  gc.collect()
  ctypes.CDLL('libc.so.6').malloc_trim(0)  # what was freed is given back
  with open('/proc/self/clear_refs', 'w') as f:
    f.write('5')  # the peak begins anew
  while connection.recv():
    began = time.perf_counter()
    run()
    connection.send(time.perf_counter() - began)
  connection.send({'from_start': whole, 'running': status_gib('VmHWM')})


def arrays(values) -> list[np.ndarray]:
  """One array or several as numpy."""
  values = values if isinstance(values, list) else [values]
  return [np.asarray(x) for x in values]


def measure(make, options, *, repeats: int, tolerance: float) -> dict:
  """Compares, then times both sides in turns.

  Args:
    make: see the module; it can be found by name in a new process.
    options: its second argument.
    repeats: turns of each side.
    tolerance: largest difference of what they return, of the largest entry.

  Returns:
    gap, ms and peak memory in GiB of both, and ratios of ours to theirs:
    of the medians of time, with the range over turns, and of memory.
  """
  spawn, pipes, ends = multiprocessing.get_context('spawn'), {}, []
  for side in SIDES:
    pipes[side], theirs = spawn.Pipe()
    ends.append(spawn.Process(
        target=serve, args=(theirs, make, side, options), daemon=True))
    ends[-1].start()
  first = {side: pipe.recv() for side, pipe in pipes.items()}
  gap = max(float(np.abs(a - b).max() / np.abs(b).max())
            for a, b in zip(first['jax'], first['torch'], strict=True))
  if not gap <= tolerance:  # NaN too
    raise SystemExit(f'results differ by {gap:.1e} of the largest entry')
  times = {side: [] for side in SIDES}
  for _ in range(repeats):
    for side, pipe in pipes.items():
      pipe.send(True)
      times[side].append(pipe.recv())
  memory = {}
  for side, pipe in pipes.items():
    pipe.send(False)
    memory[side] = pipe.recv()
  for process in ends:
    process.join()
  ratios = [a / b for a, b in zip(times['jax'], times['torch'], strict=True)]
  return {
      'gap': gap, 'ms': {side: round(1e3 * statistics.median(t))
                         for side, t in times.items()},
      'ratio': round(statistics.median(ratios), 3),
      'ratio_range': [round(min(ratios), 3), round(max(ratios), 3)],
      'peak_gib': {side: {name: round(value, 3) for name, value in m.items()}
                   for side, m in memory.items()},
      'memory_ratio': {name: round(
          memory['jax'][name] / memory['torch'][name], 3)
                       for name in memory['jax']}}
