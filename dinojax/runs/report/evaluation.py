"""Numbers and pictures of `dinojax evaluate`, as parts of a page."""

import base64
from collections.abc import Iterator, Mapping, Sequence
import io
from typing import Any

from etils import epath
from PIL import Image

from dinojax.runs import scores
from dinojax.runs.report import blocks
from dinojax.runs.report import charts

FOLDER = 'evaluation'  # within a run
FILE = 'results.html'  # within a folder of results
_MAX_PX = 1400  # side of a picture
_QUALITY = 85


def has(folder: epath.Path) -> bool:
  """Tells whether anything was measured."""
  return (folder / scores.RESULTS).exists()


def sections(folder: epath.Path) -> Iterator[str]:
  """The table, curves over the size of images, and pictures.

  Args:
    folder: folder of the results.
  """
  rows = scores.read(folder)
  titles, lines = scores.table(rows)
  yield blocks.section('What the features are good for', (
      '<p class="soft">Higher is better but for errors; in brackets the middle '
      '95 % of a bootstrap. Numbers of different keys cannot be compared.</p>'
      + blocks.table(lines, titles=titles)))
  drawn = [chart.html() for chart in curves(rows)]
  if drawn:
    yield blocks.section('By the size of images', (
        '<div class="grid">' + ''.join(
            f'<div class="card">{chart}</div>' for chart in drawn) + '</div>'))
  pictures = {file: row for row in rows for file in row.get('pictures', ())}
  if pictures:
    yield blocks.section('Seen', ''.join(
        _picture(folder / file, row) for file, row in pictures.items()))


def curves(rows: Sequence[Mapping[str, Any]]) -> list[charts.Chart]:
  """A chart of every number that was measured at several sizes."""
  places: dict[tuple, dict[str, dict[int, float]]] = {}
  for row in rows:
    place = (row['protocol'], row['test'], row['metric'])
    places.setdefault(place, {}).setdefault(row['model'], {})[
        row['px']] = row['value']
  return [
      charts.Chart(f'{protocol}, {metric}, by pixels', [
          charts.Line(model, sorted(values), [
              values[px] for px in sorted(values)])
          for model, values in models.items()], note=test)
      for (protocol, test, metric), models in places.items()
      if max(map(len, models.values())) > 1]


def _picture(path: epath.Path, row: Mapping[str, Any]) -> str:
  """A picture as an address that holds it."""
  image = Image.open(io.BytesIO(path.read_bytes())).convert('RGB')
  image.thumbnail((_MAX_PX, _MAX_PX))
  out = io.BytesIO()
  image.save(out, 'JPEG', quality=_QUALITY)
  data = base64.b64encode(out.getvalue()).decode()
  title = f'{row["protocol"]} of {row["test"]}'
  return (f'<div class="card picture"><h3>{blocks.text(title)}</h3>'
          f'<p class="soft">{blocks.text(row["model"])}</p>'
          f'<img alt="{blocks.text(title)}" '
          f'src="data:image/jpeg;base64,{data}"></div>')
