"""A chain of runs: each stage of a recipe starts from what came before it.

A recipe names its stages in order, and has a whole config for each. Where one
says 'stage:NAME' as a source of weights, it means the workdir of that stage,
DIR/NAME; 'stage:NAME/STUDENT' is one of several students. A stage has ended
when its results.json is there, which assemble.train writes last.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import gc
import json
import os
import re
from typing import Any

from etils import epath
import jax
from jax.experimental import multihost_utils

from dinojax.core import atomic
from dinojax.core import config as config_lib
from dinojax.core import errors
from dinojax.core import paths
from dinojax.data import sources
from dinojax.engine import checkpoint
from dinojax.engine import trackers
from dinojax.parallel import mesh as mesh_lib
from dinojax.parallel import processes
from dinojax.runs import assemble
from dinojax.runs import exports
from dinojax.runs import models as models_lib
from dinojax.runs import workdir as workdir_lib
from dinojax.train import settings as settings_lib

PREFIX = 'stage:'
RESULTS = workdir_lib.RESULTS


@dataclasses.dataclass(frozen=True, eq=False)
class Stage:
  """One run of a recipe.

  Attributes:
    name: name of the stage.
    folder: its workdir.
    config: nested dict, with the paths of other stages.
    settings: the same, checked.
    sources: sources of weights by key, as the recipe writes them.
    ended: True if it had ended when the program began.
    begun: step of its last checkpoint then; None: there was none.
  """

  name: str
  folder: epath.Path
  config: dict
  settings: settings_lib.Settings
  sources: Mapping[str, str]
  ended: bool
  begun: int | None

  @property
  def needs(self) -> list[str]:
    """The stages that must have ended before this one."""
    return sorted({_named(source).split('/')[0]
                   for source in self.sources.values()
                   if source.startswith(PREFIX)})


def train(recipe: Any, workdir: str, names: Sequence[str] = ()) -> bool:
  """Runs the stages that have not ended; False after a signal.

  Args:
    recipe: ConfigDict with `stages` and a config for each of them.
    workdir: folder of the chain; stage NAME is in workdir/NAME.
    names: only these; empty: all.

  Raises:
    UserError: a mistake in any stage, before the first starts; or while one
      trains, with its name.
  """
  stages = read(recipe, workdir)
  chosen = choose(stages, names)
  _check_here(stages, chosen)
  _say(plan(stages, chosen))
  left = [stage for stage in chosen if not stage.ended]
  for stage in chosen:
    if stage.ended:
      _say(f'stage {stage.name}: done, nothing to do')
      continue
    left.remove(stage)
    finished, stopped = _train(stage)
    if not finished:
      return False
    if stopped and left:  # by a signal in its last evaluation
      _say(f'stopped by a signal after stage {stage.name}; the same command '
           'continues')
      return False
  _summarize(epath.Path(_absolute(workdir)), stages)
  return True


def _train(stage: Stage) -> tuple[bool, bool]:
  """Trains or resumes one; nothing of it stays on the devices.

  Returns:
    Two bools: whether it has ended, and whether a signal asks to stop.
  """
  _say(f'stage {stage.name}: {stage.folder}')
  try:
    result = assemble.train(stage.config, str(stage.folder))
  except errors.UserError as error:
    # A message that says what to set means this stage.
    text = str(error).replace('--config.', f'--recipe.{stage.name}.')
    raise errors.UserError(f'stage {stage.name}: {text}') from error
  finished, stopped = result.finished, result.stopped
  del result
  gc.collect()  # what refers to itself would keep its arrays
  if finished and jax.process_count() > 1:
    # The next stage reads what the first process may still be renaming.
    multihost_utils.sync_global_devices(f'stage {stage.name}')
  return finished, stopped


def read(recipe: Any, workdir: str) -> list[Stage]:
  """The stages of a recipe in order, all of them checked.

  Raises:
    UserError: every mistake of every stage, with its name.
  """
  recipe = paths.expand_all(config_lib.plain(recipe))
  root = _absolute(workdir)
  names = tuple(recipe.get('stages') or ())
  problems = _misnamed(recipe, names)
  stages = []
  for place, name in enumerate(names if not problems else ()):
    sources = dict(_sources(recipe[name]))
    wrong = [text for key, source in sources.items()
             for text in _misdirected(recipe, names[:place], key, source)]
    config = _with_paths(recipe[name], root)
    folder = epath.Path(root) / name
    try:
      settings = settings_lib.read(config)
      stages.append(Stage(
          name, folder, config, settings, sources,
          _has_ended(folder, settings), _last_step(folder)))
    except errors.UserError as error:
      wrong.append(str(error))
    problems += [f'stage {name}: {text}' for text in wrong]
  _raise_any(problems)
  return stages


def _has_ended(folder: epath.Path, settings: settings_lib.Settings) -> bool:
  """Tells whether a run of all these students has written its results."""
  if workdir_lib.results(folder) is None:
    return False
  old = models_lib.read_workdir(str(folder))
  return settings.students.keys() <= old.students.keys()


def _last_step(folder: epath.Path) -> int | None:
  """Step of the last complete checkpoint; others have longer names."""
  place = folder / checkpoint.FOLDER
  steps = [int(p.name) for p in place.iterdir() if p.name.isdecimal()
           ] if place.exists() else []
  return max(steps, default=None)


def _raise_any(problems: Sequence[str]):
  if problems:
    raise errors.UserError('\n  '.join(
        ['the recipe cannot run, and nothing was started:',
         *(text.replace('\n', '\n  ') for text in problems)]))


def _absolute(workdir: str) -> str:
  """The same folder from wherever the command is given, so the same config."""
  workdir = paths.expand(workdir)
  return workdir if '://' in workdir else os.path.abspath(workdir)


def _misnamed(recipe: Mapping, names: tuple) -> list[str]:
  """Mistakes in the names of the stages."""
  if not names:
    return ['it names no stages: set stages to a tuple such as '
            "('pretrain', 'gram')"]
  wrong = [f'stages names {name} more than once: give each its own name'
           for name in sorted(set(names)) if names.count(name) > 1]
  for name in names:
    if name == 'stages' or not name or set(name) & set('/,@~'):
      wrong.append(f'{name!r} cannot be the name of a stage: it is that of a '
                   'folder, without / @ ~ and commas')
    elif not isinstance(recipe.get(name), Mapping):
      wrong.append(f'stages names {name}, but the recipe has no config of '
                   f'that name: add it, or take {name} out of stages')
  return wrong


def _named(source: str) -> str:
  """NAME or NAME/STUDENT of a source, without the step of its checkpoint."""
  return re.sub(r'@\d+$', '', source.removeprefix(PREFIX))


def _misdirected(recipe: Mapping, earlier: Sequence[str], key: str,
                 source: str) -> Iterator[str]:
  """Yields what is wrong with a source that names a stage."""
  if not source.startswith(PREFIX):
    return
  name, _, student = _named(source).partition('/')
  if name not in recipe['stages']:
    yield (f'{key}={source}: there is no stage {name}; the stages are '
           f'{", ".join(recipe["stages"])}')
    return
  if name not in earlier:
    yield (f'{key}={source}: {name} does not come before it; stages before '
           f'it: {", ".join(earlier) or "none"}')
    return
  students = list(recipe[name].get('students') or {})
  if (student or students) and student not in students:
    yield (f'{key}={source}: ' + (
        f'stage {name} has several students: write one of '
        f'{", ".join(f"{PREFIX}{name}/{s}" for s in students)}' if students
        else f'stage {name} has one student: write {PREFIX}{name}'))


def _sources(config: Mapping, path: str = '') -> Iterator[tuple[str, str]]:
  """Keys and values of all sources of weights that are given."""
  for key, value in config.items():
    place = f'{path}.{key}' if path else key
    if isinstance(value, Mapping):
      yield from _sources(value, place)
    elif key == 'source' and value is not None:
      yield place, value


def _with_paths(config: Mapping, root: str) -> dict:
  """The config with the folders of the stages that it names."""
  out = {}
  for key, value in config.items():
    if isinstance(value, Mapping):
      value = _with_paths(value, root)
    elif key == 'source' and value and value.startswith(PREFIX):
      value = str(epath.Path(root) / value.removeprefix(PREFIX))
    out[key] = value
  return out


def _check_here(stages: Sequence[Stage], chosen: Sequence[Stage]):
  """Checks devices and images of what is to run, and the folders of all stages.

  Raises:
    UserError: a batch or mesh does not fit the devices, images are missing, or
      a folder holds a run of another config.
  """
  problems, opened = [], set()
  for stage in stages:
    try:
      if stage in chosen and not stage.ended:
        for spec in specs(stage.settings) - opened:
          sources.open_source(spec)
          opened.add(spec)
        exports.check(stage.settings)
        trackers.names(stage.settings.log.trackers)
        plan = stage.settings.mesh
        settings_lib.check_devices(
            stage.settings, mesh_lib.make(plan.data, plan.fsdp).size)
      if (stage.folder / models_lib.CONFIG).exists():
        workdir_lib.open_run(str(stage.folder), stage.settings)
    except errors.UserError as error:
      problems.append(f'stage {stage.name}: {error}')
  _raise_any(problems)


def specs(settings: settings_lib.Settings) -> set[str]:
  """Every source of images that a run opens."""
  data, knn = settings.data, settings.knn
  image_sources = {spec for spec, _ in (*data.mixture, *data.whole_batches)}
  validation = knn.validation or data.validation
  return image_sources | (
      {validation, knn.train} - {None} if validation else set())


def choose(stages: Sequence[Stage], names: Sequence[str]) -> list[Stage]:
  """The stages of these names, in the order of the recipe; all without.

  Raises:
    UserError: an unknown name; one starts from a stage that neither has
      ended nor is chosen, or another has started from weights now lost.
  """
  known = {stage.name: stage for stage in stages}
  unknown = [name for name in names if name not in known]
  if unknown:
    raise errors.UserError(
        f'--stages={",".join(names)}: the recipe has no stage '
        f'{", ".join(unknown)}; it has {", ".join(known)}')
  chosen = [s for s in stages if not names or s.name in names]
  for stage in stages:
    for needed in (known[name] for name in stage.needs):
      if stage in chosen and not stage.ended and not (
          needed.ended or needed in chosen):
        raise errors.UserError(
            f'stage {stage.name} starts from stage {needed.name}, which has '
            f'not ended: {needed.folder / RESULTS} is missing. The same '
            f'command with --stages={needed.name} makes it; without '
            '--stages, it runs all')
      if needed in chosen and _is_new(needed) and not _is_new(stage):
        raise errors.UserError(
            f'stage {needed.name} would begin anew, but stage {stage.name} '
            f'has started from an earlier run of it: remove {stage.folder} '
            f'to make that again too, bring {needed.folder} back, or choose '
            'other stages with --stages')
  return chosen


def _is_new(stage: Stage) -> bool:
  return not stage.ended and stage.begun is None


def plan(stages: Sequence[Stage], chosen: Sequence[Stage]) -> str:
  """A line for each stage: from what, for how long, where, how far."""
  rows = []
  for stage in stages:
    state = ('done' if stage.ended else 'not now' if stage not in chosen
             else 'new' if stage.begun is None
             else f'resumes from step {stage.begun}')
    rows.append((
        stage.name, state,
        _length(stage.settings), str(stage.folder),
        ', '.join(f'{key.removesuffix(".source")} from '
                  f'{source.removeprefix(PREFIX)}'
                  for key, source in stage.sources.items()) or 'random weights'
    ))
  return table(rows)


def _length(settings: settings_lib.Settings) -> str:
  """Steps of a stage; where these follow from the images, what is said."""
  plan, total = settings.train, settings.train.total
  if total.unit == 'epochs' and plan.epoch_steps is None:
    return f'{total.value:g} epochs'
  steps = total.steps(
      batch_size=plan.batch_size, epoch_steps=plan.epoch_steps or 1)
  return f'{steps} steps'


def _summarize(root: epath.Path, stages: Sequence[Stage]):
  """Says what the stages that have ended came to, and writes it down."""
  if not processes.is_first():
    return
  results = {
      stage.name: result for stage in stages
      if (result := workdir_lib.results(stage.folder)) is not None}
  atomic.write_text(root / RESULTS, json.dumps(results, indent=1))
  rows = [('stage', 'steps', 'seconds', 'k-NN top-1 %')]
  for name, result in results.items():
    start = (name, str(result['steps']), f'{result["seconds"]:.0f}')
    knn = _by_student(result['knn_top1_pct']) or {'': 'not measured'}
    for student, text in knn.items():
      rows.append((*(start if student in ('', *list(knn)[:1]) else ('',) * 3),
                   f'{student} {text}'.strip()))
  _say(f'{table(rows)}\n{root / RESULTS}')


def _by_student(knn: Mapping[str, float]) -> dict[str, str]:
  """Groups values named 'vits16/trained' (alone: 'trained') by student."""
  out: dict[str, list] = {}
  for name, value in knn.items():
    student, _, kind = name.rpartition('/')
    out.setdefault(student, []).append(f'{kind} {value:.1f}')
  return {student: ', '.join(texts) for student, texts in out.items()}


def table(rows: Sequence[Sequence[str]]) -> str:
  """Columns of text."""
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return '\n'.join('  '.join(
      cell.ljust(width) for cell, width in zip(row, widths, strict=True)
  ).rstrip() for row in rows)


def _say(text: str):
  if processes.is_first():
    print(text, flush=True)
