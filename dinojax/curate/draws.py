"""Random numbers of rows: functions of a seed and a row, and of nothing else.

So any number of shards, workers and orders draws the same.
"""

import numpy as np

# Steps of the generator SplitMix64.
_STEP = np.uint64(0x9E3779B97F4A7C15)
_MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1))


def keys(rows: np.ndarray, *stream: int) -> np.ndarray:
  """Random 64-bit numbers of rows, different for every stream.

  The rows with the smallest keys are a draw without replacement.

  Args:
    rows: [r] integers, 0 or more.
    stream: seed, and what tells this draw from others.

  Returns:
    [r] uint64.

  Source: Steele, Lea and Flood, Fast Splittable Pseudorandom Number
  Generators, 2014.
  """
  with np.errstate(over='ignore'):  # modulo 2⁶⁴
    state = np.uint64(0)
    for word in stream:
      state = _mixed(state + _STEP * np.uint64(word % 2**64 + 1))
    return _mixed(state + _STEP * (np.asarray(rows).astype(np.uint64)
                                   + np.uint64(1)))


def _mixed(x):
  for shift, factor in _MIX:
    x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
  return x
