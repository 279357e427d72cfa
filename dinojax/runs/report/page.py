"""The report of a run: one HTML file with everything inside it."""

from collections.abc import Callable, Iterator, Sequence
import os

from etils import epath

from dinojax import __version__
from dinojax.core import atomic
from dinojax.core import errors
from dinojax.core import paths
from dinojax.runs import models as models_lib
from dinojax.runs import workdir as workdir_lib
from dinojax.runs.report import blocks
from dinojax.runs.report import charts
from dinojax.runs.report import curves
from dinojax.runs.report import evaluation
from dinojax.runs.report import facts
from dinojax.runs.report import gallery

FILE = 'report.html'  # in the workdir
_EVENTS = 200  # the last ones are shown
_STYLE = """
:root{color-scheme:light dark;--paper:#fbfaf8;--card:#fff;--ink:#24262b;
--soft:#676c76;--edge:#e2e0db}
@media(prefers-color-scheme:dark){:root{--paper:#15171b;--card:#1d2026;
--ink:#e8e7e3;--soft:#a0a5ae;--edge:#33373f}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);
font:15px/1.55 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:1180px;margin:0 auto;padding:28px 20px 60px}
h1{font-size:28px;margin:0 0 2px;overflow-wrap:anywhere}
h2{font-size:18px;margin:38px 0 12px}
h3{font-size:15px;margin:0 0 2px}
p{margin:0 0 10px;max-width:75ch;overflow-wrap:anywhere}
.soft{color:var(--soft)}
.grid{display:grid;gap:14px;
grid-template-columns:repeat(auto-fit,minmax(min(330px,100%),1fr))}
.card{background:var(--card);border:1px solid var(--edge);border-radius:10px;
padding:14px 16px;min-width:0}
.big{display:flex;flex-wrap:wrap;gap:10px;margin:16px 0}
.big .card{padding:8px 16px}
.big b{display:block;font-size:24px;line-height:1.3}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:14px}
.facts td,.facts th{padding:3px 18px 3px 0;text-align:left;vertical-align:top;
font-weight:400;overflow-wrap:anywhere}
.facts th{color:var(--soft);overflow-wrap:normal}
.facts code{overflow-wrap:anywhere}
img{max-width:100%;height:auto;border-radius:6px;display:block}
.picture{margin-bottom:14px}
footer{margin-top:44px;color:var(--soft);font-size:13px}
summary{cursor:pointer;color:var(--soft)}
"""


def write(workdir: str, out: str | None = None, *,
          compare: Sequence[str] = (),
          models: Callable[[], gallery.Models] | None = None,
          has_ended: bool = False) -> str:
  """Writes the report of a run or of a chain of runs.

  Args:
    workdir: folder of the run; it may still train.
    out: file to write; None: report.html in the workdir.
    compare: other runs, whose curves are drawn beside.
    models: gives the models that are drawn, of the run first; None: its last
      checkpoint, and those of the others.
    has_ended: the run ends just now, and its results are not written yet.

  Returns:
    The path of the file.

  Raises:
    UserError: no run there, one that has logged nothing yet, or a file that
      cannot be written.
  """
  place = paths.expand(workdir)
  folder = epath.Path(  # '.' has no name
      os.path.abspath(place) if atomic.is_local(place) else place)
  path = epath.Path(paths.expand(out)) if out else folder / FILE
  others = [str(paths.expand(other)) for other in compare]
  if _is_chain(folder):
    if others:
      raise errors.UserError(
          f'{folder} is a chain of runs: compare its stages, such as '
          f'{folder}/STAGE, which are runs')
    body = ''.join(_of_chain(folder))
  else:
    body = ''.join(_of_run(folder, others, models, has_ended))
  try:
    atomic.write_text(path, whole(folder.name, body))
  except OSError as error:
    raise errors.cannot_write(str(path), error) from error
  return os.fspath(path)


def write_evaluation(folder: epath.Path):
  """Writes a page of a folder of results alone, results.html."""
  title = '<h1>Evaluation</h1>'
  atomic.write_text(folder / evaluation.FILE, whole(
      'Evaluation', title + ''.join(evaluation.sections(folder))))


def _is_chain(folder: epath.Path) -> bool:
  return not (folder / models_lib.CONFIG).exists() and bool(_stages(folder))


def _stages(folder: epath.Path) -> list[str]:
  """The runs below a folder, in the order in which they began."""
  if not folder.is_dir():
    return []
  configs = [path / models_lib.CONFIG for path in folder.iterdir()
             if (path / models_lib.CONFIG).exists()]
  return [path.parent.name for path in sorted(
      configs, key=lambda path: (path.stat().mtime, str(path)))]


def _of_run(folder: epath.Path, others: Sequence[str],
            models: Callable[[], gallery.Models] | None,
            has_ended: bool) -> Iterator[str]:
  histories = facts.histories([str(folder), *others])
  history = histories[0]
  yield f'<h1>{blocks.text(history.name)}</h1>'
  yield blocks.note(facts.state(folder, history, has_ended))
  yield _headline(list(facts.scores(history)))
  yield blocks.section('What was trained', blocks.table(
      facts.training(folder, history), head=True))
  if others:
    yield blocks.section('Compared', blocks.table(
        [(other.name, *_one_line(facts.scores(other))) for other in histories],
        head=True))
  yield blocks.section('Curves', _charts(curves.draw(histories)))
  yield '<h2>Pictures</h2>'
  names = _names(histories, folder, others)
  for picture in gallery.draw(
      folder, history.settings, models or (lambda: gallery.load(names))):
    yield _picture(picture)
  yield _events(folder)
  if evaluation.has(folder / evaluation.FOLDER):
    yield from evaluation.sections(folder / evaluation.FOLDER)
  name, rows = facts.config(history)
  yield blocks.section('Config', (
      '<p>Nearest of <code>dinojax configs</code>: '
      f'<b>{blocks.text(name)}</b>; '
      f'{len(rows)} values differ.</p>' + blocks.folded('values', blocks.table(
          rows, titles=('key', name, 'this run')))))
  yield blocks.section('Versions', blocks.folded(
      'packages', blocks.table(facts.versions(folder), head=True)))


def _of_chain(folder: epath.Path) -> Iterator[str]:
  names = _stages(folder)
  results = {name: result for name in names if (
      result := workdir_lib.results(folder / name)) is not None}
  yield f'<h1>{blocks.text(folder.name)}</h1>'
  yield (f'<p class="soft">A chain of runs: {len(results)} of {len(names)} '
         'that have begun have ended.</p>')
  yield blocks.section('Stages', blocks.table(
      facts.stages(results), titles=('stage', 'steps', 'time',
                                     'k-NN accuracy, %')))
  for name in names:
    yield f'<h2>{blocks.text(name)}</h2>'
    try:
      history = curves.read(folder / name)
    except errors.UserError as error:
      yield f'<p>{blocks.text(error)}</p>'
      continue
    yield blocks.note(facts.state(folder / name, history))
    yield blocks.table(facts.training(folder / name, history), head=True)
    yield _charts(curves.draw([history]))


def _names(histories: Sequence[curves.History], folder: epath.Path,
           others: Sequence[str]) -> dict[str, str]:
  """Names and places of the models that are drawn, the run's first."""
  places = {}
  for history, place in zip(
      histories, (str(folder), *others), strict=True):
    for student in history.settings.students or ('',):
      name = f'{history.name} {student}'.strip()
      while name in places:
        name += "'"
      places[name] = f'{place}/{student}' if student else place
  return places


def _one_line(rows: Iterator[facts.Row]) -> tuple[str]:
  return (' · '.join(f'{name} {value}' for name, value in rows)
          or 'k-NN not measured',)


def _headline(rows: Sequence[facts.Row]) -> str:
  if not rows:
    return ('<p>k-NN accuracy was not measured: the run has no labelled '
            'validation images (data.validation).</p>')
  return '<div class="big">' + ''.join(
      f'<div class="card"><b>{blocks.text(value)}</b>k-NN, '
      f'{blocks.text(name)}</div>'
      for name, value in rows) + '</div>'


def _charts(drawn: Sequence[charts.Chart]) -> str:
  return '<div class="grid">' + ''.join(
      f'<div class="card">{chart.html()}</div>' for chart in drawn) + '</div>'


def _picture(picture: gallery.Picture) -> str:
  shown = (f'<img alt="{blocks.text(picture.title)}" src="{picture.data()}">'
           if picture.image else
           f'<p class="soft">Not drawn: {blocks.text(picture.reason)}</p>')
  return (f'<div class="card picture"><h3>{blocks.text(picture.title)}</h3>'
          f'<p class="soft">{blocks.text(picture.note)}</p>{shown}</div>')


def _events(folder: epath.Path) -> str:
  rows = facts.events(folder)[-_EVENTS:]
  count, some = facts.bad_images(folder)
  parts = [blocks.table(rows, head=True) if rows else
           '<p>None were written.</p>']
  if count:
    parts.append(f'<p>{count} images could not be read; {len(some)} of '
                 f'them:</p>' + blocks.table(some))
  return blocks.section('Events, times in UTC', ''.join(parts))


def whole(name: str, body: str) -> str:
  """A page with everything inside it."""
  return (
      '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
      '<meta name="viewport" content="width=device-width,initial-scale=1">'
      f'<title>{blocks.text(name)} · dinojax</title>'
      f'<style>{_STYLE}{charts.STYLE}</style></head><body><main>{body}'
      f'<footer>Written by dinojax {__version__}. This file holds all it '
      'shows, and needs no network.</footer></main></body></html>\n')
