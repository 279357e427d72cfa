"""Protocols by name while a run trains, see `evals` of its config.

k-NN is measured in every run with labelled validation images. The others read
its images (knn.train, knn.validation), at its sizes, at its evaluations, and
share its features. Heads are trained within: without a folder, and without
a line for each step. When the run is to stop, they are dropped, and repeated
when it goes on.
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import dataclasses
import difflib
import logging
from typing import Any

from etils import epath
import jax

from dinojax.core import config as config_lib
from dinojax.core import errors
from dinojax.data import parts
from dinojax.data import sources
from dinojax.evals import learned as learned_lib
from dinojax.evals import protocol
from dinojax.evals import registry
from dinojax.features import backbone as backbone_lib
from dinojax.features import preprocessing
from dinojax.features import stream
from dinojax.parallel import processes
from dinojax.probes import fit as fit_lib
from dinojax.train import method as method_lib
from dinojax.train import sections
from dinojax.train import settings as settings_lib


def read(config: Mapping[str, Any]) -> dict[str, Any]:
  """The sections of `evals` by protocol, with `every` and their own values.

  Raises:
    UserError: protocols or keys that are not known, all at once.
  """
  problems, out = config_lib.Errors(), {}
  for name, values in config.items():
    if name not in registry.PROTOCOLS:
      near = difflib.get_close_matches(name, registry.PROTOCOLS, 1, 0.5)
      problems.add(f'evals.{name} is no protocol: ' + (
          f'did you mean {near[0]}?' if near else
          f'use some of {", ".join(registry.PROTOCOLS)}'))
      continue
    if values is None or not isinstance(values, Mapping):
      problems.add(f'evals.{name}={config_lib.shown(values)} is not a section: '
                   f'give evals.{name}.every_steps, or an empty one')
      continue
    out[name] = config_lib.section(
        kind(name), values, path=f'evals.{name}', problems=problems)
  problems.raise_any()
  return out


def kind(name: str) -> type:
  """The settings of a protocol, with the time between two.

  `every` is a multiple of knn.every; None: at every evaluation.
  """
  theirs = registry.PROTOCOLS[name].Settings
  return dataclasses.make_dataclass(
      'Chosen', [('every', config_lib.Duration | None, None)],
      bases=(theirs,), frozen=True, namespace={'__doc__': theirs.__doc__})


class Evaluations:
  """The evaluator of a run: (step, EMA by student, stop) to scores by name.

  Scores are PROTOCOL/SCORE, and of k-NN those of `learned.NAMES`;
  NAME/PROTOCOL/… of several students.
  """

  def __init__(self, method: method_lib.Method, mesh: jax.sharding.Mesh,
               steps: Callable[[Any], int | None], total: int,
               given: learned_lib.Given, folder: epath.Path | None):
    """Opens the sets, see `make`."""
    settings = method.settings
    chosen = read(settings.evals)
    self._sets = {name: _sets(name, section, settings)
                  for name, section in chosen.items()}
    self._every = _cadence(chosen, steps, steps(settings.knn.every))
    # A default whose labels are not there is left out.
    self._chosen = {name: section for name, section in chosen.items()
                    if self._sets[name] is not None}
    for name, section in self._chosen.items():
      for student in method.each.values():
        registry.PROTOCOLS[name].check(
            section, student.student.config.backbone)
    self._method, self._mesh, self._total = method, mesh, total
    self._neighbours = learned_lib.make(method, given, folder)
    self._say = _once()
    for note in self._neighbours.notes if self._neighbours else ():
      self._say(note)
    # Programs of a student's heads are of its network, and of nobody else's.
    self._programs = {(student, name): {}
                      for student in method.each for name in self._chosen}

  def __bool__(self) -> bool:
    return bool(self._chosen or self._neighbours)

  def __call__(self, step: int, emas: Mapping[str, dict],
               stop: Callable[[], bool]) -> dict[str, float]:
    """Scores of a step; see the class."""
    scores = {}
    for name in self._method.each:
      prefix = '' if name == sections.ALONE else f'{name}/'
      job = self._job(name, emas[name]['backbone'],
                      protocol.Nested(stop, {}, {}))
      numbers = self._neighbours.evaluate(
          step, name, job) if self._neighbours else {}
      for protocol_name, section in self._chosen.items():
        if step % (self._every[protocol_name] or 1) and step != self._total:
          continue
        first, *_ = self._run(name, protocol_name, section, job)
        numbers |= {f'{protocol_name}/{metric}': value
                  for metric, value in first.scores().items()}
      scores |= {prefix + key: value for key, value in numbers.items()}
    if self._neighbours:
      self._neighbours.keep()
    return scores

  def heads(self) -> Iterator[tuple[str, fit_lib.Fit]]:
    """The trainings of heads by protocol, of which no array exists yet.

    Raises:
      UserError: sets that the heads cannot learn from.
    """
    for name, student in self._method.each.items():
      fits: list[fit_lib.Fit] = []
      job = self._job(name, student.student.shapes['backbone'],
                      protocol.Nested(lambda: False, {}, {}, fits.append))
      for protocol_name, section in self._chosen.items():
        if not getattr(registry.PROTOCOLS[protocol_name], 'TRAINS', False):
          continue
        fits.clear()
        with contextlib.suppress(errors.Stopped):
          self._run(name, protocol_name, section, job)
        yield from ((protocol_name, fit) for fit in fits)

  def _run(self, student: str, name: str, section: Any, job: protocol.Job
           ) -> list[protocol.Measured]:
    nested = dataclasses.replace(
        job.nested, programs=self._programs[student, name])
    return registry.PROTOCOLS[name].run(dataclasses.replace(
        job, sets=self._sets[name], nested=nested), section)

  def _job(self, name: str, params: Mapping,
           nested: protocol.Nested) -> protocol.Job:
    """The input of protocols for a student's weights, or their shapes."""
    s = self._method.settings
    model = backbone_lib.Backbone(
        self._method.each[name].student.config.backbone, params, self._mesh,
        mean=s.augment.mean, std=s.augment.std)
    return protocol.Job(
        model, {}, preprocessing.Preprocessing(s.knn.resize_px, s.knn.crop_px),
        reading=stream.Reading(
            s.knn.batch_size, s.data.num_threads, max_pixels=s.data.max_pixels,
            value_range=tuple(s.data.value_range)),
        say=self._say, nested=nested, keys=learned_lib.KEYS)


def make(method: method_lib.Method, mesh: jax.sharding.Mesh,
         steps: Callable[[Any], int | None], total: int,
         given: learned_lib.Given = lambda name, fresh: None,
         folder: epath.Path | None = None) -> Evaluations | None:
  """The evaluator of a run; None: it has nothing to measure.

  Args:
    method: networks and settings of the run.
    mesh: the devices.
    steps: a duration in steps; None of None.
    total: the last step, at which everything is measured.
    given: see learned.Neighbours.
    folder: workdir, which keeps baselines over restarts; None: not kept.

  Raises:
    UserError: see `read`; sets that are not given or have no labels; a time
      that no evaluation of the run falls on.
  """
  return Evaluations(method, mesh, steps, total, given, folder) or None


def _cadence(chosen: Mapping[str, Any], steps: Callable[[Any], int | None],
             between: int | None) -> dict[str, int | None]:
  """Steps between two evaluations of every protocol; None: at each.

  Raises:
    UserError: a time that no evaluation of the run falls on.
  """
  every = {name: steps(section.every) for name, section in chosen.items()}
  for name, count in every.items():
    if count and (not between or count % between):
      raise errors.UserError(
          f'evals.{name}.every is {count} steps, and the run evaluates every '
          f'{between} (knn.every): set it to a multiple, or leave it out')
  return every


def _once() -> Callable[[str], None]:
  """Warns of every sentence once in a run, by the first process."""
  told: set[str] = set()

  def say(sentence: str):
    if sentence not in told and processes.is_first():
      logging.warning('%s', sentence)
    told.add(sentence)

  return say


def _sets(name: str, section: Any, settings: settings_lib.Settings
          ) -> dict[str, tuple] | None:
  """The sets of a protocol by role; None: a run without labelled images.

  Raises:
    UserError: a set that k-NN's images cannot stand for is not given.
  """
  plan, data = settings.knn, settings.data
  shared = {
      'train': (plan.train or data.mixture[0][0], plan.max_train_images),
      'test': (plan.validation or data.validation,
               plan.max_validation_images)}
  out = {}
  for role, wanted in registry.PROTOCOLS[name].ROLES.items():
    spec = getattr(section, role, None)
    if spec:
      out[role] = tuple(wanted.opens(each) for each in (
          (spec,) if isinstance(spec, str) else spec))
      continue
    spec, limit = shared.get(wanted.data or '', (None, 0))
    if spec:
      source = sources.open_source(spec)
      if not source.classes and wanted.what == protocol.Role().what:
        return None
      out[role] = (parts.evenly(source, limit),)
    elif not wanted.needed:
      out[role] = ()
    elif wanted.data:
      return None
    else:
      raise errors.UserError(
          f'evals.{name}.{role} is missing: give {wanted.what}')
  return out
