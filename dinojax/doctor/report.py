"""Report of `dinojax doctor`, in order: machine, config, data, speed.

Each part is a title and findings, made when it is asked for, so that a report
grows while the slow parts still run.
"""

from collections.abc import Callable, Iterator
import dataclasses
import json
import sys
from typing import Any

from etils import epath
import jax

from dinojax.core import atomic
from dinojax.core import errors
from dinojax.core import paths
from dinojax.core import tree
from dinojax.data import classes
from dinojax.data import inspection
from dinojax.data import record as record_lib
from dinojax.data import sources
from dinojax.doctor import findings
from dinojax.doctor import machine
from dinojax.doctor import sanity
from dinojax.doctor import speed
from dinojax.doctor import supply
from dinojax.doctor import versions
from dinojax.doctor import views
from dinojax.engine import checkpoint
from dinojax.parallel import hardware
from dinojax.parallel import mesh as mesh_lib
from dinojax.parallel import processes
from dinojax.planning import memory as memory_lib
from dinojax.planning import throughput
from dinojax.runs import assemble
from dinojax.runs import models as models_lib
from dinojax.runs import workdir as workdir_lib
from dinojax.train import method as method_lib
from dinojax.train import sections
from dinojax.train import settings as settings_lib
from dinojax.train import variants

Findings = list[findings.Finding]
Part = tuple[str, Findings]
Say = Callable[[str], None]
_FEW_IMAGES = 50  # whose k-NN is a matter of luck


@dataclasses.dataclass(frozen=True)
class Options:
  """Extent of a report.

  Attributes:
    workdir: folder of the run that is planned, or None.
    compile_cache: folder of compiled programs; empty: none.
    steps: number of steps that are timed; 0: none, and nothing is compiled.
    input_s: seconds that the input pipeline is timed; 0: not at all.
    num_sampled: images of a source that are opened.
  """

  workdir: str | None = None
  compile_cache: str = assemble.DEFAULT_COMPILE_CACHE
  steps: int = 3
  input_s: float = 10.0
  num_sampled: int = 64


@dataclasses.dataclass(frozen=True)
class _Data:
  """The sources of a config that could be opened."""

  training: list
  homogeneous: list
  source_findings: Findings

  @property
  def num_images(self) -> int | None:
    """Images of the training sources; None: not all could be opened."""
    return sum(len(s) for s, _ in self.training) or None


def report(config: Any, options: Options, json_path: str | None) -> int:
  """Prints findings part by part; 1 if there are errors, 2 if none can be.

  Args:
    config: see `parts`.
    options: how much.
    json_path: file that gets the same, or None.
  """
  try:
    processes.initialize()
  except errors.UserError as wrong:
    print(f'error: {wrong}', file=sys.stderr)
    return 2
  first = bool(hardware.failure()) or processes.is_first()
  say = lambda text: first and print(f'… {text}', file=sys.stderr, flush=True)
  made: dict[str, Findings] = {}
  for title, part_findings in parts(config, options, say):
    made[title] = part_findings
    if first:
      print(findings.table(title, part_findings), flush=True)
  everything = [finding for part_findings in made.values()
                for finding in part_findings]
  if first:
    print(findings.summary(everything))
  bad, doubtful = findings.count(everything)
  if first and json_path:
    atomic.write_text(json_path, json.dumps(
        {'errors': bad, 'warnings': doubtful,
         'parts': {title: [dataclasses.asdict(f) for f in part_findings]
                   for title, part_findings in made.items()}}, indent=1))
  return 1 if bad else 0


def parts(config: Any, options: Options, say: Say) -> Iterator[Part]:
  """The report of a machine, and of a config on it.

  Args:
    config: ConfigDict, see train.settings; None: the machine alone.
    options: how much.
    say: gets a line before anything slow.
  """
  yield 'machine', machine.look(
      options.workdir or '.', paths.expand(options.compile_cache))
  yield 'versions', versions.look()
  if hardware.failure():
    return
  if config is None:
    yield 'speed', speed.of_machine()
    return
  try:
    settings = settings_lib.read(config)
  except errors.UserError as wrong:
    yield 'config', _mistakes(wrong)
    return
  say('opening the data')
  data = _open(settings, options.num_sampled)
  run = sanity.Scale(jax.device_count(), data.num_images)
  say('building the network')
  method, mesh, network_findings = _network(settings, run)
  yield 'config', [
      *network_findings, *sanity.findings_of(settings, run),
      *views.settings_findings(settings)]
  yield 'data', [*data.source_findings, *_amounts(settings, run)]
  if options.workdir:
    yield 'workdir', _workdir(options.workdir, settings, method, mesh)
  if method is None:
    yield 'speed', speed.of_machine()
  else:
    yield 'speed', speed.of_run(
        method, mesh, data.training, data.homogeneous,
        total_steps=run.total_steps(settings), steps=options.steps,
        input_s=options.input_s, say=say)


def _mistakes(wrong: errors.UserError) -> Findings:
  """One finding a mistake; `settings.read` lists them in lines."""
  first, *rest = str(wrong).splitlines()
  lines = [line.strip() for line in rest] or [first.removeprefix('config: ')]
  return [findings.error('config', line) for line in lines]


def _open(settings: settings_lib.Settings, num_sampled: int) -> _Data:
  """Opens every source and looks at a few of its training images."""
  source_findings, opened, tried = [], {}, set()

  def attempt(name, spec):
    if spec in tried:
      return
    tried.add(spec)
    try:
      opened[spec] = sources.open_source(spec)
    except errors.UserError as wrong:
      source_findings.append(findings.error(name, str(wrong)))
      return
    source_findings.append(findings.ok(
        name, f'{spec}: {len(opened[spec])} images, '
        f'{len(opened[spec].classes)} classes'))

  def both(name, pairs):
    for spec, _ in pairs:
      attempt(name, spec)
      if spec in opened:
        what, fix = sources.no_classes(opened[spec])
        if what:
          source_findings.append(findings.warn(name, what, fix))
        source_findings.extend(views.sample_findings(
            settings, inspection.sample(
                opened[spec], num_sampled, max_pixels=settings.data.max_pixels,
                value_range=settings.data.value_range)))
    every = all(spec in opened for spec, _ in pairs)
    return [(opened[spec], weight) for spec, weight in pairs] if every else []

  training = both('data.train', settings.data.mixture)
  homogeneous = both('data.homogeneous', settings.data.whole_batches)
  source_findings += _validation(settings, attempt, opened)
  return _Data(training, homogeneous, source_findings)


def _validation(settings: settings_lib.Settings, attempt: Callable,
                opened: dict) -> Findings:
  """Can k-NN be measured? Only labelled sources can be voted with."""
  test = settings.knn.validation or settings.data.validation
  if not test:
    return [findings.skip(
        'k-NN', 'data.validation is not set: nothing but the loss will tell '
        'how training goes')]
  train = settings.knn.train or settings.data.mixture[0][0]
  out = []
  for name, spec in (('k-NN images', train), ('data.validation', test)):
    attempt(name, spec)
    if spec in opened and not opened[spec].classes:
      out.append(findings.error(
          name, f'{spec} has no labels, and k-NN needs them',
          'a source with sub-folders, or data.validation=None'))
  if not out and {train, test} <= opened.keys():
    out += _classes(opened[train], opened[test])
    count = len(opened[test])
    if count < _FEW_IMAGES:
      out.append(findings.warn(
          'data.validation', f'{count} images: each is {100 / count:.3g} % of '
          'k-NN', 'more labelled images, or little trust in it'))
  return out


def _classes(train: record_lib.Source, test: record_lib.Source) -> Findings:
  """Do both sides of k-NN have the same classes?"""
  try:
    matching = classes.match(train, test, train_key='k-NN images',
                             test_key='data.validation')
  except errors.UserError as wrong:
    return [findings.error('k-NN classes', str(wrong))]
  return [findings.warn('k-NN classes', note, 'give both the same sub-folders')
          for note in matching.notes]


def _network(settings: settings_lib.Settings, run: sanity.Scale
             ) -> tuple[method_lib.Method | None, jax.sharding.Mesh, Findings]:
  """The method on all devices, and what it takes of them."""
  mesh = None
  try:
    mesh = mesh_lib.make(settings.mesh.data, settings.mesh.fsdp)
    given = models_lib.read_frozen_teacher(settings)
    with mesh_lib.activate(mesh):
      method = method_lib.build(
          settings, mesh, run.epoch_steps(settings), given and given.config)
      method = variants.method_of(method, variants.heaviest(method))
      memory = _memory(method, mesh)
  except errors.UserError as wrong:
    return None, mesh, [findings.error('mesh', str(wrong))]
  axes = ' × '.join(f'{name} {n}' for name, n in mesh.shape.items())
  return method, mesh, [
      *_parameters(method), findings.ok('mesh', axes),
      *(_chosen(key, settings, method, mesh)
        for key in ('dtype', 'attention') if hasattr(settings.model, key)),
      memory]


def _memory(method: method_lib.Method, mesh: jax.sharding.Mesh
            ) -> findings.Finding:
  """Checks the estimated memory as training does before it compiles."""
  try:
    settings_lib.check_devices(method.settings, mesh.size)
  except errors.UserError:
    return findings.skip('memory', 'the batch does not suit the devices')
  free = hardware.available_gib(mesh.local_devices[0])
  need = memory_lib.of_pretraining(method, mesh)
  fits = need.peak <= memory_lib.DOUBTFUL * free
  return supply.estimated(need, free, '' if fits else memory_lib.advice(
      method, mesh, free, need))


def _parameters(method: method_lib.Method) -> Findings:
  """Counts the parameters of a frozen teacher and of every student."""
  networks = {'teacher': method.teacher} if method.has_frozen_teacher else {}
  networks |= {'parameters' if name == sections.ALONE else name: student.student
               for name, student in method.each.items()}
  return [findings.ok(owner, ', '.join(
      f'{name} {tree.num_elements(part) / 1e6:.2f}M'
      for name, part in net.shapes.items()))
          for owner, net in networks.items()]


def _chosen(key: str, settings: settings_lib.Settings,
            method: method_lib.Method, mesh: jax.sharding.Mesh
            ) -> findings.Finding:
  """A choice that 'auto' leaves to the platform."""
  value = getattr(method.settings.model, key)
  asked = getattr(settings.model, key)
  why = (f'chosen for {mesh_lib.platform(mesh)}' if asked == 'auto'
         else f'set by model.{key}')
  return findings.ok(key, f'{value}, {why}')


def _amounts(settings: settings_lib.Settings, run: sanity.Scale) -> Findings:
  """Epochs, workers, and the memory through which workers hand over."""
  epoch_findings = [] if run.num_images is None else supply.epochs(
      settings, run.total_steps(settings), run.num_images)
  return epoch_findings + supply.workers(
      settings, hardware.num_cores(), hardware.free_gib('/dev/shm'),
      settings.train.batch_size // jax.process_count())


def _workdir(workdir: str, settings: settings_lib.Settings,
             method: method_lib.Method | None, mesh: jax.sharding.Mesh
             ) -> Findings:
  """Can it be written, does it continue this run, do checkpoints fit?"""
  workdir_findings = [_continues(workdir, settings)]
  if not hardware.is_writable(workdir):
    workdir_findings.append(findings.error(
        'workdir', f'{workdir} cannot be written',
        'choose a folder you may write to'))
  if method:
    with mesh_lib.activate(mesh):
      size = throughput.state_gib(method, mesh)
    keep = method.settings.checkpoint.keep
    workdir_findings += supply.space(
        size, hardware.free_gib(workdir), keep,
        min(_num_checkpoints(workdir), keep))
  return workdir_findings


def _num_checkpoints(workdir: str) -> int:
  folder = epath.Path(workdir) / checkpoint.FOLDER
  return sum(part.name.isdecimal()
             for part in folder.iterdir()) if folder.exists() else 0


def _continues(workdir: str, settings: settings_lib.Settings
               ) -> findings.Finding:
  """Tells whether the workdir holds a run, and whether it is this one."""
  if not (epath.Path(workdir) / models_lib.CONFIG).exists():
    return findings.ok('workdir', f'{workdir}: a new run')
  try:
    old = models_lib.read_workdir(workdir)
  except errors.UserError as wrong:
    return findings.error('workdir', f'{workdir}: {wrong}',
                          'use another --workdir')
  lines = workdir_lib.changes(old, settings)
  if not lines:
    return findings.ok('workdir', f'{workdir}: continues its run')
  return findings.error(
      'workdir', f'{workdir} holds a run of another config: '
      + '; '.join(lines), 'use another --workdir, or set them back')
