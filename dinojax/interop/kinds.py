"""Kinds of files that pass for weights, told by their first bytes."""

import pathlib
import re

import numpy as np

from dinojax.interop import told

State = dict[str, np.ndarray]
_KNOWN = (  # first bytes of what is often found under another name
    (b'', 'an empty file'),
    (b'version https://git-lfs', 'a pointer of git-lfs, not the file itself: '
     'run `git lfs pull` where it was cloned'),
    (b'PK\x03\x04', 'a zip archive, as PyTorch writes'),
    (b'\x1f\x8b', 'compressed by gzip: unpack it first'),
    (b'BZh', 'compressed by bzip2: unpack it first'),
    (b'\xfd7zXZ', 'compressed by xz: unpack it first'),
    (b'\x28\xb5\x2f\xfd', 'compressed by zstd: unpack it first'),
    (b'\x89HDF', 'an HDF5 file'), (b'\x93NUMPY', 'a NumPy file'))


def mistaken(place: pathlib.Path) -> str | None:
  """Names the kind of a file by its first bytes.

  Returns:
    A phrase such as 'a web page'; None: nothing that is known.
  """
  with open(place, 'rb') as file:
    start = file.read(4096)
  for magic, name in _KNOWN:
    if start == magic or magic and start.startswith(magic):
      return name
  if (place.suffix != '.safetensors' and start[8:9] == b'{'
      and start[4:8] == b'\0' * 4):
    return 'a safetensors file: rename it to .safetensors'
  try:
    text = start.decode()
  except UnicodeDecodeError as error:
    if error.start < len(start) - 3:  # else the cut is within a letter
      return None
    text = start[:error.start].decode()
  if any(ord(c) < 32 and c not in '\t\n\r\f' for c in text):
    return None
  if re.match(r'\s*<(!doctype|html|\?xml)', text, re.IGNORECASE):
    return ('a web page, not weights: the download gave a message instead; '
            'open it in a browser to see which')
  first = told.text(text.strip().partition('\n')[0])
  return f'text, not weights: it begins with {first}'


def first_line(error: Exception) -> str:
  """First line of an error, at most 200 characters; without one, its type."""
  lines = str(error).splitlines()
  return (lines[0] if lines else type(error).__name__)[:200]
