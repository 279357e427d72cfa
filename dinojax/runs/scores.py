"""Numbers of evaluations on disk: lines, rows of images, pictures, the table.

A line of results.jsonl is a number, with the key of its protocol. Rows of
single images are kept in rows/, from which every number can be made again.
"""

from collections.abc import Mapping, Sequence
import csv
import datetime
import io
import json
import math
from typing import Any

from etils import epath
import numpy as np
from PIL import Image

import dinojax
from dinojax.core import atomic
from dinojax.core import log
from dinojax.core import text
from dinojax.evals import protocol
from dinojax.evals import published

RESULTS, TABLE = 'results.jsonl', 'results.md'
ROWS, PICTURES, PREDICTIONS = 'rows', 'pictures', 'predictions'
CLASSES = 'classes'  # names beside the columns of rows


def read(folder: epath.Path) -> list[dict]:
  """All lines of a folder of results; [] without any.

  A number that there is not is null in the file, and NaN here.
  """
  return [row | {'value': math.nan if row['value'] is None else row['value']}
          for row in log.rows(folder / RESULTS)]


def is_done(folder: epath.Path, identity: Mapping[str, Any]) -> bool:
  """Tells whether a protocol has its lines."""
  return any(identity.items() <= row.items() for row in read(folder))


def keep(folder: epath.Path, identity: Mapping[str, Any],
         measured: Sequence[protocol.Measured], seconds: float):
  """Writes rows and lines of a protocol: the lines last, and all at once.

  Args:
    folder: folder of the results.
    identity: model, weights, protocol, key and px of the lines.
    measured: rows of each test set.
    seconds: time that measuring took.
  """
  lines = []
  for i, part in enumerate(measured):
    name = '-'.join((identity['protocol'], identity['key'],
                     identity['weights'], str(i)))
    packed = io.BytesIO()
    np.savez(packed, **part.rows, **(
        {CLASSES: np.array(part.classes, np.str_)} if part.classes else {}))
    _write(folder / ROWS / f'{name}.npz', packed.getvalue())
    pictures = {picture: f'{PICTURES}/{name}-{picture}.png'
                for picture in part.pictures}
    for picture, file in pictures.items():
      packed = io.BytesIO()
      Image.fromarray(part.pictures[picture]).save(packed, 'PNG')
      _write(folder / file, packed.getvalue())
    intervals = part.intervals()
    for metric, value in part.scores().items():
      low, high = intervals.get(metric, (None, None))
      lines.append(dict(identity) | {
          'test': part.test, 'metric': metric, 'value': _known(value),
          'low': _known(low), 'high': _known(high),
          'published': published.figure(
              identity['model'], identity['protocol'], part.test, metric),
          'images': part.num_rows, 'facts': dict(part.facts),
          'rows': f'{ROWS}/{name}.npz', 'pictures': list(pictures.values()),
          'seconds': round(seconds, 1),
          'time': datetime.datetime.now(datetime.UTC).isoformat(
              timespec='seconds'), 'dinojax': dinojax.__version__})
  path = folder / RESULTS
  before = path.read_text() if path.exists() else ''
  atomic.write_text(path, before + ''.join(
      json.dumps(line) + '\n' for line in lines))


def _known(value: float | None) -> float | None:
  """A number as JSON has it: NaN is none there."""
  return None if value is None or math.isnan(value) else value


def write_predictions(folder: epath.Path, names: Mapping[str, Sequence[str]]):
  """Writes a CSV file of every npz of rows, a line an image.

  Args:
    folder: folder of the results.
    names: names of the images of a test set, where they are known.
  """
  for row in {row['rows']: row for row in read(folder)}.values():
    with np.load(io.BytesIO((folder / row['rows']).read_bytes())) as columns:
      flat = {name: column for name, column in columns.items()
              if column.ndim == 1}
    classes = flat.pop(CLASSES, ())
    known = names.get(row['test'], ())
    if 'index' in flat and known:
      flat = {'name': [known[int(i)] for i in flat['index']]} | flat
    for name in ('label', 'prediction'):
      if name in flat and len(classes):
        flat[name] = [classes[int(i)] for i in flat[name]]
    out = io.StringIO(newline='')
    writer = csv.writer(out)
    writer.writerow(flat)
    writer.writerows(zip(*flat.values(), strict=True))
    name = row['rows'].rpartition('/')[2].removesuffix('.npz')
    _write(folder / PREDICTIONS / f'{name}.csv', out.getvalue().encode())


def _write(path: epath.Path, data: bytes):
  path.parent.mkdir(parents=True, exist_ok=True)
  atomic.write_bytes(path, data)


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
  """The table of all numbers, see `table`, with its models in the head."""
  titles, lines = table(rows)
  return ''.join(f'| {" | ".join(cells)} |\n' for cells in (
      titles, ['---'] * len(titles), *lines))


def table(rows: Sequence[Mapping[str, Any]]
          ) -> tuple[list[str], list[list[str]]]:
  """Titles and cells: a line a number's key and metric, a column a model.

  Numbers of different keys are never beside each other.
  """
  models = list(dict.fromkeys(row['model'] for row in rows))
  cells: dict[tuple, dict[str, str]] = {}
  for row in rows:
    place = (row['protocol'], row['key'], row['test'], row['metric'],
             row.get('px', ''))
    cells.setdefault(place, {})[row['model']] = shown(row)
  titles = ['protocol', 'test', 'metric', 'px',
            *(text.printable(model) for model in models), 'key']
  return titles, [
      [protocol, text.printable(test), metric, str(px),
       *(values.get(model, '–') for model in models), key]
      for (protocol, key, test, metric, px), values in cells.items()]


def shown(row: Mapping[str, Any]) -> str:
  """'72.1 (70.4–73.9)': a number and its interval of 95 %.

  A figure that was published of the same weights stands behind.
  """
  out = number(row['value'])
  if row['low'] is not None:
    out += f' ({number(row["low"])}–{number(row["high"])})'
  if row.get('published') is not None:
    out += f' [published {number(row["published"])}]'
  return out


def number(value: float) -> str:
  """'72.1', or '0.403': three digits, or one after the point."""
  return f'{value:.1f}' if abs(value) >= 10 or not value else f'{value:.3g}'
