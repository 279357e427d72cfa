"""Stages one after the other: what is done stays, what has changed is redone.

WORKDIR/STAGE/KEY holds what a stage wrote; the key is a digest of its settings
and of what it read. A changed option is another key for its stage and for
those that depend on it, and the old one stays until it is deleted.
"""

from collections.abc import Callable, Sequence
import os
from typing import Protocol

from dinojax.core import errors
from dinojax.core import log
from dinojax.curate.engines import in_process
from dinojax.curate.engines import work


class Engine(Protocol):
  """Does the tasks of a phase."""

  def map(self, tasks: Sequence[work.Task], told: in_process.Told, *,
          whole: bool = False):
    """Returns when all are done."""


def run(stages: Sequence[work.Stage], workdir: str, engine: Engine, *,
        say: Callable[[str], None] = print) -> dict[str, work.Place]:
  """Runs what is not done yet.

  Args:
    stages: in an order in which each comes after those that it needs.
    workdir: folder of a folder for each stage.
    engine: runs the tasks.
    say: gets a line for every stage.

  Returns:
    The places of all stages, by name.

  Raises:
    UserError: a stage that is missing or comes too late, and whatever ends a
      task.
  """
  check(stages)
  for stage in stages:
    stage.settings()  # every mistake in them, before anything is done
  places: dict[str, work.Place] = {}
  for stage in stages:
    place = place_of(stage, workdir, places)
    places[stage.name] = place
    manifest = work.manifest(place)
    kept = ' (kept)' if manifest else ''
    if manifest is None:
      for phase in stage.phases():
        _run_phase(stage, place, phase, engine)
      manifest = work.finish(stage, place)
    say(f'{stage.name}: {_told(manifest["counts"])}{kept}')
  return places


def check(stages: Sequence[work.Stage]):
  """Refuses an order in which a stage comes before what it reads.

  Raises:
    UserError: with the names of both.
  """
  seen: set[str] = set()
  for stage in stages:
    if stage.name in seen:
      raise errors.UserError(
          f'stages name {stage.name} twice: give each once')
    for name in stage.needs:
      if name not in seen:
        raise errors.UserError(
            f'stage {stage.name} reads what {name} writes: put {name} before '
            'it')
    seen.add(stage.name)


def place_of(stage: work.Stage, workdir: str,
             places: dict[str, work.Place]) -> work.Place:
  """The folder of a stage, of its settings and of what it reads."""
  inputs = {name: places[name] for name in stage.needs}
  return work.Place(os.path.join(
      workdir, stage.name, work.key(stage, inputs)), inputs)


def _run_phase(stage: work.Stage, place: work.Place, phase: work.Phase,
               engine: Engine):
  """Does the tasks of a phase that are not done."""
  count = phase.count(place)
  tasks = [work.Task(stage, place, phase.name, i) for i in range(count)]
  left = [task for task in tasks
          if place.done(phase.name, task.index) is None]
  if not left:
    return
  done = count - len(left)
  with log.Bar(count, unit=f'{stage.name}/{phase.name} tasks') as bar:

    def told(task, counts):
      del task, counts
      nonlocal done
      done += 1
      if count > 1:
        bar.show(done)

    if count > 1:
      bar.show(done)
    engine.map(left, told, whole=phase.whole)


def _told(counts: work.Counts) -> str:
  return ' · '.join(f'{name.replace("_", " ")} {value:,}'
                    for name, value in counts.items()) or 'done'
