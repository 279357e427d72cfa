"""Stages, their phases and tasks, and the files that tasks leave.

A stage is a chain of phases, a phase a list of tasks in any order, by any
number of processes and machines. A task writes files whose names begin with
its number, and its sums last: what has those is done. So every engine gives
the same bytes, and a killed one goes on where it was.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
from typing import Any, NamedTuple, Protocol

from dinojax.core import atomic
from dinojax.core import errors
from dinojax.curate.engines import threads

Counts = dict[str, int]
MANIFEST = 'manifest.json'
_DONE = '.done'


class Phase(NamedTuple):
  """Tasks that need nothing of each other.

  Attributes:
    name: folder of its files.
    count: number of tasks, when all phases before are done.
    run: does one task, by its number; what it returns is added up.
    whole: True where a task uses all cores and devices of a machine.
  """

  name: str
  count: Callable[['Place'], int]
  run: Callable[['Place', int], Counts]
  whole: bool = False


class Stage(Protocol):
  """A step of a recipe; picklable.

  Attributes:
    name: name in the recipe.
    version: number of the form of what it writes.
    needs: names of the stages that it reads.
  """

  name: str
  version: int
  needs: tuple[str, ...]

  def settings(self) -> Mapping[str, Any]:
    """Values that change what it writes, as JSON."""

  def phases(self) -> Sequence[Phase]:
    """Phases in their order."""


@dataclasses.dataclass(frozen=True)
class Place:
  """The folder of a stage, and those of the stages that it reads."""

  folder: str
  inputs: Mapping[str, 'Place'] = dataclasses.field(default_factory=dict)

  def file(self, phase: str, index: int, suffix: str = 'parquet') -> str:
    """Path of a file of a task."""
    return os.path.join(self.folder, phase, f'{_number(index)}.{suffix}')

  def checked(self, phase: str, index: int, suffix: str = 'parquet') -> str:
    """Path of a file that a task left, which is as it was written.

    Its sum is looked at once in every process that reads it.

    Raises:
      UserError: it is missing, or a byte of it is another.
    """
    path = self.file(phase, index, suffix)
    done = self.done(phase, index)
    if done is not None:  # None: the task itself reads what it wrote
      _check(path, tuple(done['files'].get(
          os.path.basename(path), {}).items()),
             self.file(phase, index, _DONE[1:]))
    return path

  def count(self, phase: str) -> int:
    """Number of tasks of a phase that are done."""
    folder = pathlib.Path(self.folder, phase)
    return sum(name.endswith(_DONE) for name in os.listdir(folder)) if (
        folder.exists()) else 0

  def done(self, phase: str, index: int) -> dict | None:
    """Counts and sums of a task; None: it is not done."""
    path = pathlib.Path(self.file(phase, index, _DONE[1:]))
    if not path.exists():
      return None
    return atomic.read_json(path, f'delete {path} to make its task again')

  def counts(self, phase: str) -> list[Counts]:
    """Counts of all tasks of a phase, in order."""
    return [self.done(phase, i)['counts'] for i in range(self.count(phase))]


class Task(NamedTuple):
  """A task of a phase, as it travels to a process."""

  stage: Stage
  place: Place
  phase: str
  index: int

  @property
  def title(self) -> str:
    """Name in messages."""
    return f'{self.stage.name}/{self.phase}/{_number(self.index)}'


def do(task: Task) -> Counts:
  """Does a task unless it is done, and returns its counts.

  Raises:
    UserError: the disk refuses, or what the stage says.
  """
  place, index = task.place, task.index
  done = place.done(task.phase, index)
  if done is not None:
    return done['counts']
  phase, = (p for p in task.stage.phases() if p.name == task.phase)
  folder = pathlib.Path(place.folder, task.phase)
  try:
    folder.mkdir(parents=True, exist_ok=True)
    with threads.limited(whole=phase.whole):
      counts = {key: int(value)
                for key, value in phase.run(place, index).items()}
    files = {path.name: _sums(path) for path in sorted(
        folder.glob(f'{_number(index)}.*')) if not path.name.endswith(
            (_DONE, atomic.SUFFIX))}
    atomic.write_text(place.file(task.phase, index, _DONE[1:]), json.dumps(
        {'counts': counts, 'files': files}))
  except OSError as error:
    if error.errno in errors.FULL:
      raise errors.cannot_write(f'{folder} of {task.title}', error) from error
    raise
  return counts


@functools.cache
def _check(path: str, sums: tuple, done: str):
  """Compares a file with what its task left; once in a process."""
  state = ('is not as it was written' if os.path.exists(path)
           else 'is missing')
  if state == 'is missing' or _sums(pathlib.Path(path)) != dict(sums):
    raise errors.UserError(
        f'{path} {state}: delete {done} and {pathlib.Path(done).parents[1]}/'
        f'{MANIFEST}, and start the same command again to make it anew')


def key(stage: Stage, inputs: Mapping[str, Place]) -> str:
  """Digest of all that decides what a stage writes, 16 digits."""
  return hashlib.sha256(json.dumps(
      _identity(stage, inputs), sort_keys=True).encode()).hexdigest()[:16]


def finish(stage: Stage, place: Place) -> dict:
  """Writes the manifest of a stage whose tasks are all done, and returns it."""
  files, totals = {}, {}
  for phase in stage.phases():
    for index in range(place.count(phase.name)):
      done = place.done(phase.name, index)
      files |= {f'{phase.name}/{name}': sums
                for name, sums in done['files'].items()}
      for name, value in done['counts'].items():
        totals[name] = totals.get(name, 0) + value
  manifest = {**_identity(stage, place.inputs), 'counts': totals,
              'files': files}
  atomic.write_text(pathlib.Path(place.folder, MANIFEST),
                    json.dumps(manifest, indent=1, sort_keys=True))
  return manifest


def manifest(place: Place) -> dict | None:
  """The manifest of a finished stage; None: it is not finished."""
  path = pathlib.Path(place.folder, MANIFEST)
  return atomic.read_json(path, f'delete {path} to make its stage again') if (
      path.exists()) else None


def _identity(stage: Stage, inputs: Mapping[str, Place]) -> dict:
  return {'stage': stage.name, 'version': stage.version,
          'settings': stage.settings(),
          'inputs': {name: hashlib.sha256(pathlib.Path(
              place.folder, MANIFEST).read_bytes()).hexdigest()
                     for name, place in sorted(inputs.items())}}


def _sums(path: pathlib.Path) -> dict:
  """Length and SHA-256 of a file."""
  with open(path, 'rb') as file:
    digest = hashlib.file_digest(file, 'sha256').hexdigest()
  return {'bytes': path.stat().st_size, 'sha256': digest}


def _number(index: int) -> str:
  return f'{index:06d}'
