"""The report of a curation: where images went, with pictures of each way."""

import base64
from collections.abc import Iterator, Mapping, Sequence
import io
import os

import numpy as np
from PIL import Image

from dinojax.core import atomic
from dinojax.curate import selections
from dinojax.curate import sheets
from dinojax.curate import tables
from dinojax.curate import verdicts
from dinojax.curate.engines import work
from dinojax.curate.stages import base
from dinojax.curate.stages import cluster
from dinojax.curate.stages import joined
from dinojax.runs.report import blocks
from dinojax.runs.report import charts
from dinojax.runs.report import page
from dinojax.runs.report import pool_images

FILE = 'curation.html'
_SHOWN, _ROWS = 12, 6  # images of a row, and rows of a sheet
_LOST, _KEPT = (190, 60, 50), (40, 130, 70)

Places = Mapping[str, work.Place]


def write(folder: str, stages: Sequence[base.Stage], places: Places) -> str:
  """Writes the report of a workdir, and returns its path.

  Args:
    folder: workdir.
    stages: stages that have ended, in their order.
    places: their places, by name.
  """
  path = os.path.join(folder, FILE)
  # Without the folder's name: what is curated twice is the same twice.
  atomic.write_text(path, page.whole('Curation', ''.join((
      '<h1>Curation</h1>', *_sections(stages, places)))))
  return path


def _sections(stages: Sequence[base.Stage], places: Places) -> Iterator[str]:
  yield blocks.section('Funnel', _funnel(stages, places))
  pool = places.get('ingest')
  if pool is None:
    return
  images = pool_images.PoolImages(pool, places.get('filter'))
  dropped = [(stage.name, row) for stage in stages
             if (row := _dropped(places[stage.name], images))]
  if dropped:
    yield _picture(
        'Dropped, by stage', 'Drawn by chance from what each stage drops; '
        'under each the reason.', dropped)
  for stage in stages:
    place = places[stage.name]
    if joined.has(place) and (rows := list(_copies(place, images))):
      yield _picture(
          f'Copies of the stage {stage.name}', 'Components drawn by chance: '
          'the image that stays in green, then its copies.', rows)
  if 'decontaminate' in places:
    rows = list(_references(places['decontaminate'], images))
    if rows:
      yield _picture('Nearest to the benchmarks', 'Images of the pool with the '
                     'name of the reference and the cosine; red: dropped.',
                     rows)
  if 'cluster' in places:
    yield from _clusters(places, images)


def _funnel(stages: Sequence[base.Stage], places: Places) -> str:
  """A line for each stage: its counts, and a bar of the images that stay."""
  lines, first = [], None
  for stage in stages:
    counts = work.manifest(places[stage.name])['counts']
    left = counts.get('kept', counts.get('records', counts.get('images')))
    first = first or left
    share = '' if not left or not first else (
        f'{"█" * max(round(20 * left / first), 1)}\N{NO-BREAK SPACE}{left:,}')
    lines.append((stage.name, share, ' · '.join(
        f'{name.replace("_", " ")} {value:,}'
        for name, value in counts.items())))
  return blocks.table(lines, titles=('stage', 'images', 'counts'), head=True)


def _dropped(place: work.Place, images: pool_images.PoolImages
             ) -> list[sheets.Tile]:
  """Images that a stage dropped; [] where it drops none."""
  why = {}
  for index in range(place.count(verdicts.ROWS)):
    table = tables.read(place.checked(verdicts.ROWS, index),
                        ('row', 'reason'))
    gone = table['row'][[bool(reason) for reason in table['reason']]]
    first = images.shards[index].start
    for row in images.some(gone, _SHOWN).tolist():
      why[row] = table['reason'][row - first]
  chosen = np.array(sorted(why)) if why else np.zeros(0, np.int64)
  return [images.tile(row, why[row], _LOST)
          for row in images.some(chosen, _SHOWN).tolist()]


def _copies(place: work.Place, images: pool_images.PoolImages
            ) -> Iterator[tuple[str, list[sheets.Tile]]]:
  """Components of several images, each with the one that stays first."""
  label = joined.labels(place)
  kept = joined.kept(place)
  sizes = np.bincount(label, minlength=len(label))
  for number in images.some(np.flatnonzero(sizes > 1), _ROWS).tolist():
    members = np.flatnonzero(label == number)
    members = members[np.argsort(~kept[members], kind='stable')][:_SHOWN]
    yield f'{sizes[number]} images', [
        images.tile(row, f'row {row}', _KEPT if kept[row] else _LOST)
        for row in members.tolist()]


def _references(place: work.Place, images: pool_images.PoolImages
                ) -> Iterator[tuple[str, list[sheets.Tile]]]:
  """Images of the pool that are nearest to a reference, closest first."""
  parts = [tables.read(place.checked(verdicts.ROWS, i), (
      'row', 'alive', 'reason', 'reference_name', 'reference_score'))
           for i in range(place.count(verdicts.ROWS))]
  score = np.concatenate([part['reference_score'] for part in parts])
  row, alive = (np.concatenate([part[key] for part in parts])
                for key in ('row', 'alive'))
  names, why = (sum((part[key] for part in parts), [])
                for key in ('reference_name', 'reason'))
  order = np.argsort(-score, kind='stable')
  gone = [i for i in order.tolist() if why[i]]
  stays = [i for i in order.tolist() if alive[i] and score[i] > -1]
  for title, some in (('closest of the dropped', gone[:_SHOWN]),
                      ('farthest of the dropped', gone[-_SHOWN:]),
                      ('closest of those that stay', stays[:_SHOWN])):
    if some:
      yield title, [images.tile(
          int(row[i]), f'{score[i]:.2f} {names[i]}',
          _LOST if why[i] else _KEPT) for i in some]


def _clusters(places: Places, images: pool_images.PoolImages) -> Iterator[str]:
  """Images of some clusters, and how large they are before and after."""
  place = places['cluster']
  table = cluster.assigned(place)
  finest, order = table['level_1'], np.argsort(table['distance'])
  rows = []
  for number in images.some(np.unique(finest), _ROWS).tolist():
    mine = order[finest[order] == number]
    rows.append((f'{len(mine)} images', [
        images.tile(int(table['row'][i])) for i in mine[:_SHOWN].tolist()]))
  yield _picture('Clusters of the finest level', 'Drawn by chance; the images '
                 'nearest to the centroid.', rows)
  top = finest
  for labels in cluster.above(place):
    top = labels[top]
  lines = [_sizes('clustered', np.bincount(top))]
  if 'sample' in places:
    chosen = selections.read(places['sample'])
    at = np.searchsorted(table['row'], chosen['row'])
    lines.append(_sizes('sampled', np.bincount(
        top[at], chosen['count'], minlength=top.max() + 1)))
  yield '<div class="grid"><div class="card">' + charts.Chart(
      'Images of the clusters of the top level, largest first', lines,
      note='The flatter, the more evenly concepts are drawn.'
  ).html() + '</div></div>'


def _sizes(name: str, counts: np.ndarray) -> charts.Line:
  counts = np.sort(np.asarray(counts, float))[::-1]
  return charts.Line(name, np.arange(1, len(counts) + 1), counts)


def _picture(title: str, note: str,
             rows: Sequence[tuple[str, Sequence[sheets.Tile]]]) -> str:
  image: Image.Image = sheets.draw(rows)
  out = io.BytesIO()
  image.save(out, 'JPEG', quality=82)
  data = base64.b64encode(out.getvalue()).decode()
  return (f'<div class="card picture"><h3>{blocks.text(title)}</h3>'
          f'<p class="soft">{blocks.text(note)}</p>'
          f'<img alt="{blocks.text(title)}" '
          f'src="data:image/jpeg;base64,{data}"></div>')
