"""Curves of a run, or of several side by side, from their metrics.jsonl."""

from collections.abc import Mapping, Sequence
import dataclasses
import math
import os

from etils import epath

from dinojax.core import errors
from dinojax.core import log
from dinojax.core import paths
from dinojax.engine import report as log_lib
from dinojax.evals import learned
from dinojax.runs import models
from dinojax.runs.report import charts
from dinojax.train import settings as settings_lib


@dataclasses.dataclass(frozen=True)
class History:
  """Rows that a run has logged.

  Attributes:
    name: name of the run, of its folder.
    settings: its config.
    rows: rows of training, by rising step.
    evaluations: rows of evaluations, by rising step.
  """

  name: str
  settings: settings_lib.Settings
  rows: Sequence[Mapping[str, float]]
  evaluations: Sequence[Mapping[str, float]]

  def lines(self, key: str) -> list[charts.Line]:
    """A line for each student that has logged a key, of either kind of row."""
    names = ['', *(f'{name}/' for name in self.settings.students)]
    lines = []
    for name in names:
      points = [(row['step'], float(row[name + key]))
                for row in (*self.rows, *self.evaluations)
                if name + key in row]
      if points:
        steps, values = zip(*sorted(points), strict=True)
        lines.append(charts.Line(name.rstrip('/'), steps, values))
    return lines


def read(workdir: str | os.PathLike) -> History:
  """The history of a run, finished or not.

  Raises:
    UserError: no run there, or one that has logged nothing yet.
  """
  folder = epath.Path(paths.expand(workdir))
  settings = models.read_workdir(str(folder))
  rows = [row for row in log.rows(folder / log_lib.LOG) if 'step' in row]
  if not rows:
    raise errors.UserError(
        f'{folder} has logged nothing yet: wait for log.every_steps='
        f'{settings.log.every_steps} steps of training')
  kinds = [], []  # of training, of evaluation
  for row in rows:
    kinds[log_lib.EVALUATION_S in row].append(row)
  return History(folder.name, settings, *kinds)


@dataclasses.dataclass(frozen=True)
class Curve:
  """A chart as it is asked for.

  Attributes:
    title: title, with the unit.
    keys: logged keys with their names in the legend.
    note: sentence that says how to read it.
  """

  title: str
  keys: Mapping[str, str]
  note: str = ''


LOSS = Curve('Losses, nats', {
    'loss/dino_global': 'DINO, global crops',
    'loss/dino_local': 'DINO, local crops', 'loss/ibot': 'iBOT'},
    'A student that answers every image alike stays at ln K; iBOT begins at '
    'its own ln K times the share of crops that hide patches.')
KNN = Curve('k-NN accuracy, %', {'knn/trained': 'trained'},
            'Dashed: what raw pixels and the untrained network reach.')
CURVES = (
    LOSS, KNN,
    Curve('Linear probe, %', {'linear/top-1': 'top-1'}),
    Curve('Linear segmentation, mIoU, %', {'segmentation/mIoU': 'mIoU'}),
    Curve('Effective rank of CLS', {'rankme/effective rank': 'rank'},
          'Directions that CLS tokens use: near 1 they have collapsed.'),
    Curve('Teacher: 1 is the most', {
        'teacher/entropy': 'entropy of targets',
        'teacher/usage': 'prototypes in use',
        'teacher/feature_std': 'spread of features'},
        'Usage or spread near 0: all images get the same answer.'),
    Curve('Left to learn from the teacher, ln K',
          {'dino/divergence': 'divergence'}),
    Curve('Cosines within images', {
        'patches/cls_cosine': 'CLS with its patches',
        'patches/patch_cosine': 'between patches'},
        'Both rise when patches lose what is theirs: dense features degrade, '
        'though k-NN may still rise.'),
    Curve('KoLeo', {'loss/koleo': 'KoLeo'},
          'Lower is more evenly spread; it may be negative.'),
    Curve('Gram anchoring', {'loss/gram': 'Gram'}),
    Curve('Gradient norms before clipping', {
        'grad_norm/backbone': 'backbone', 'grad_norm/dino_head': 'DINO head',
        'grad_norm/ibot_head': 'iBOT head'}),
    Curve('Learning rate', {'schedule/lr': 'weights',
                            'schedule/last_layer_lr': 'last layer'}),
    Curve('Teacher temperature',
          {'schedule/teacher_temperature': 'temperature'}),
    Curve('Images a second', {'time/images_per_s': 'images/s'}),
    Curve('Waiting for images, % of a step',
          {'time/data_wait_pct': 'data wait'}),
    Curve('Updates left out, images replaced', {
        'skipped_steps': 'updates', 'bad_images': 'images'}),
)


def draw(histories: Sequence[History]) -> list[charts.Chart]:
  """All curves of which something was logged.

  Args:
    histories: one run; or several, whose curves share a chart for each key.
  """
  if len(histories) == 1:
    made = [_of_run(histories[0], curve) for curve in CURVES]
  else:
    made = [_of_runs(histories, curve, key)
            for curve in CURVES for key in curve.keys]
  return [chart for chart in made if chart.lines]


def of_run(workdir: str | os.PathLike) -> list[charts.Chart]:
  """The curves of a run, to be shown.

  Raises:
    UserError: see `read`.
  """
  return draw([read(workdir)])


def _of_run(history: History, curve: Curve) -> charts.Chart:
  lines = [
      dataclasses.replace(line, name=f'{line.name} {name}'.strip())
      for key, name in curve.keys.items() for line in history.lines(key)]
  return charts.Chart(
      curve.title, lines, _levels(history, curve), curve.note)


def _of_runs(histories: Sequence[History], curve: Curve,
             key: str) -> charts.Chart:
  lines = [
      dataclasses.replace(line, name=f'{history.name} {line.name}'.strip())
      for history in histories for line in history.lines(key)]
  levels = [
      level if curve is LOSS else dataclasses.replace(
          level, name=f'{history.name} {level.name}')
      for history in histories for level in _levels(history, curve)]
  title = curve.title if len(curve.keys) == 1 else (
      f'{curve.title}: {curve.keys[key]}')
  return charts.Chart(title, lines, _once(levels), curve.note)


def _levels(history: History, curve: Curve) -> list[charts.Level]:
  if curve is LOSS:
    count = history.settings.dino.num_prototypes
    return [charts.Level(f'ln {count}', math.log(count))]
  if curve is not KNN:
    return []
  return _once([
      charts.Level(f'{line.name} {name}'.strip(), line.values[-1])
      for key, name in learned.NAMES.items() if key not in KNN.keys
      for line in history.lines(key)])


def _once(levels: Sequence[charts.Level]) -> list[charts.Level]:
  """The same levels without repetitions, in order."""
  return list(dict.fromkeys(levels))
