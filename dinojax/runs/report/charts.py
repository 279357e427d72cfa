"""Charts of numbers over steps: SVG inside HTML, light or dark, no scripts.

A chart is shown by a notebook as it is, and by a report among others. Its
numbers stand below it as a table, for readers who cannot see the picture.
"""

from collections.abc import Sequence
import dataclasses
import html
import math

import numpy as np

WIDTH, HEIGHT = 400, 220  # units of the drawing, pixels on a telephone
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 10, 8, 24
_BINS = 160  # points of a line: a drawing shows no more
_TABLE_ROWS = 12

# Colours that can be told apart on white and on near-black, also by readers
# who do not see red and green.
COLOURS = ('#3f7fd8', '#d9772b', '#2a9d78', '#b5559f', '#8a7a1f', '#6f7682')

STYLE = """
.chart{margin:0;min-width:0;font:13px/1.4 system-ui,sans-serif}
.chart figcaption{font-weight:600}
.chart svg{width:100%;height:auto;display:block;overflow:visible}
.chart text{fill:currentColor;font:11px system-ui,sans-serif}
.chart .grid{stroke:currentColor;stroke-opacity:.14}
.chart .level{stroke:currentColor;stroke-opacity:.6;stroke-dasharray:4 3}
.chart .line{fill:none;stroke-width:1.8;stroke-linejoin:round}
.chart .key{display:inline-flex;gap:.35em;align-items:center;margin-right:1em}
.chart .key i{width:12px;height:3px;display:inline-block}
.chart details{font-size:12px}
.chart .scroll{overflow-x:auto}
.chart td,.chart th{padding:0 .8em 0 0;text-align:right;font-weight:400}
"""


@dataclasses.dataclass(frozen=True)
class Line:
  """Values over steps; those that are not finite are left out.

  Attributes:
    name: name in the legend.
    steps: [r] steps, rising.
    values: [r] values.
  """

  name: str
  steps: Sequence[float]
  values: Sequence[float]


@dataclasses.dataclass(frozen=True)
class Level:
  """A value to compare with, drawn across the chart."""

  name: str
  value: float


@dataclasses.dataclass(frozen=True)
class Chart:
  """A drawing of lines over the steps of a run.

  Attributes:
    title: title, with the unit.
    lines: the lines; of many points, means of neighbours are drawn in a band
      from the smallest to the largest.
    levels: values to compare with.
    note: sentence that says how to read it.
  """

  title: str
  lines: Sequence[Line]
  levels: Sequence[Level] = ()
  note: str = ''

  def html(self) -> str:
    """A <figure>; its page holds STYLE."""
    drawn = [_binned(line) for line in self.lines]
    drawn = [line for line in drawn if len(line.steps)]
    parts = [f'<figcaption>{html.escape(self.title)}</figcaption>']
    if self.note:
      parts.append(f'<div>{html.escape(self.note)}</div>')
    if not drawn:
      parts.append('<p>No numbers yet.</p>')
    else:
      parts += [_legend(drawn), _svg(self, drawn), _table(self, drawn)]
    return f'<figure class="chart">{"".join(parts)}</figure>'

  def _repr_html_(self) -> str:
    return (f'<style>{STYLE}</style><div style="max-width:640px">'
            f'{self.html()}</div>')


@dataclasses.dataclass(frozen=True)
class _Binned:
  name: str
  steps: np.ndarray  # [r]
  mean: np.ndarray
  low: np.ndarray
  high: np.ndarray


def _binned(line: Line) -> _Binned:
  """Means, smallest and largest values of neighbouring finite points."""
  steps = np.asarray(line.steps, float)
  values = np.asarray(line.values, float)
  known = np.isfinite(values)
  steps, values = steps[known], values[known]
  groups = np.array_split(np.arange(len(steps)), min(_BINS, len(steps)) or 1)
  reduce = lambda f, x: np.array([f(x[g]) for g in groups if len(g)])
  return _Binned(line.name, reduce(np.max, steps), reduce(np.mean, values),
                 reduce(np.min, values), reduce(np.max, values))


def ticks(low: float, high: float, count: int = 5) -> list[float]:
  """About `count` round numbers from `low` to `high`."""
  span = high - low
  if not span > 0:
    return [low]
  raw = span / count
  unit = 10.0 ** math.floor(math.log10(raw))
  step = next(unit * m for m in (1, 2, 5, 10) if unit * m >= raw * 0.999)
  first = math.ceil(low / step - 1e-9)
  last = math.floor(high / step + 1e-9)
  return [step * i for i in range(first, last + 1)]


def number(value: float) -> str:
  """A number in few characters: 12.5k, 0.042, 3e-05."""
  value = float(f'{value:.4g}')  # 999,999.9 is a million
  size = abs(value)
  for limit, letter in ((1e9, 'G'), (1e6, 'M'), (1e4, 'k')):
    if size >= limit:
      unit = 1e3 if letter == 'k' else limit
      return f'{value / unit:.3g}{letter}'
  if size and size < 1e-3:
    return f'{value:.2g}'
  return f'{value:.4g}'


def _range(chart: Chart, lines: Sequence[_Binned]) -> tuple[float, float]:
  """From the smallest to the largest mean or level, with some air."""
  ends = [f(line.mean) for line in lines for f in (np.min, np.max)]
  ends += [level.value for level in chart.levels]
  low, high = float(min(ends)), float(max(ends))
  if low == high == 0:
    return 0.0, 1.0  # nothing ever happened, and counts are not negative
  air = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
  return low - air, high + air


def _svg(chart: Chart, lines: Sequence[_Binned]) -> str:
  low, high = _range(chart, lines)
  first = min(float(line.steps[0]) for line in lines)
  last = max(float(line.steps[-1]) for line in lines)
  if first == last:
    first, last = first - 1, last + 1
  x = lambda v: _LEFT + (v - first) / (last - first) * (
      WIDTH - _LEFT - _RIGHT)
  y = lambda v: HEIGHT - _BOTTOM - (
      np.clip(v, low, high) - low) / (high - low) * (HEIGHT - _TOP - _BOTTOM)
  parts = [
      f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
      f'aria-label="{html.escape(_in_words(chart, lines))}">']
  for value in ticks(low, high):
    parts.append(
        f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" '
        f'y1="{y(value):.1f}" y2="{y(value):.1f}"/><text x="{_LEFT - 5}" '
        f'y="{y(value) + 4:.1f}" text-anchor="end">{number(value)}</text>')
  for value in ticks(first, last, 4):
    parts.append(f'<text x="{x(value):.1f}" y="{HEIGHT - 8}" '
                 f'text-anchor="middle">{number(value)}</text>')
  for level in chart.levels:
    at = float(y(level.value))
    # Below the line where there is no room above it.
    label = at - 4 if at > _TOP + 14 else at + 12
    parts.append(
        f'<line class="level" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" '
        f'y1="{at:.1f}" y2="{at:.1f}"/><text x="{WIDTH - _RIGHT}" '
        f'y="{label:.1f}" text-anchor="end">{html.escape(level.name)} '
        f'{number(level.value)}</text>')
  for i, line in enumerate(lines):
    parts += _curve(line, _colour(i), x, y)
  return ''.join([*parts, '</svg>'])


def _curve(line: _Binned, colour: str, x, y) -> list[str]:
  """A band from the smallest to the largest, and the means in it."""
  points = lambda values: [f'{x(s):.1f},{float(y(v)):.1f}' for s, v in zip(
      line.steps, values, strict=True)]
  parts = []
  if np.any(line.high > line.low):
    band = ' '.join(points(line.high) + points(line.low)[::-1])
    parts.append(f'<polygon points="{band}" fill="{colour}" '
                 'fill-opacity=".16"/>')
  if len(line.steps) == 1:
    at, = points(line.mean)
    cx, cy = at.split(',')
    return [*parts, f'<circle cx="{cx}" cy="{cy}" r="3" fill="{colour}"/>']
  return [*parts, f'<polyline class="line" stroke="{colour}" '
          f'points="{" ".join(points(line.mean))}"/>']


def _colour(index: int) -> str:
  return COLOURS[index % len(COLOURS)]


def _legend(lines: Sequence[_Binned]) -> str:
  return '<div>' + ''.join(
      f'<span class="key"><i style="background:{_colour(i)}"></i>'
      f'{html.escape(line.name)} <b>{number(line.mean[-1])}</b></span>'
      for i, line in enumerate(lines)) + '</div>'


def _in_words(chart: Chart, lines: Sequence[_Binned]) -> str:
  """The text that is read aloud instead of the picture."""
  return chart.title + ': ' + '; '.join(
      f'{line.name} from {number(line.mean[0])} to {number(line.mean[-1])}'
      for line in lines)


def _table(chart: Chart, lines: Sequence[_Binned]) -> str:
  """The numbers as text, at most twelve rows a line."""
  steps = np.unique(np.concatenate([line.steps for line in lines]))
  rows = steps[np.unique(np.linspace(
      0, len(steps) - 1, min(_TABLE_ROWS, len(steps))).round().astype(int))]
  head = ''.join(f'<th scope="col">{html.escape(line.name)}</th>'
                 for line in lines)
  body = ''.join(
      f'<tr><th scope="row">{step:.0f}</th>' + ''.join(
          f'<td>{_nearest(line, step)}</td>' for line in lines) + '</tr>'
      for step in rows)
  levels = ''.join(f'<div>{html.escape(level.name)}: {number(level.value)}'
                   '</div>' for level in chart.levels)
  return (f'<details><summary>numbers</summary>{levels}<div class="scroll">'
          f'<table><thead><tr><th scope="col">step</th>{head}</tr></thead>'
          f'<tbody>{body}</tbody></table></div></details>')


def _nearest(line: _Binned, step: float) -> str:
  """The value at a step, of the nearest point within the line."""
  if not line.steps[0] <= step <= line.steps[-1]:
    return ''
  return number(line.mean[int(np.abs(line.steps - step).argmin())])
