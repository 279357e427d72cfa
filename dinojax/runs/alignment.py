"""Text alignment, from a config and a workdir to a head that is kept.

  WORKDIR/head/     the heads, with their vocabulary
  WORKDIR/results.json, metrics.jsonl, checkpoints/    as of any run
"""

from collections.abc import Callable, Mapping
import contextlib
import dataclasses
import json
import statistics
import time
from typing import Any

from etils import epath
import jax
import numpy as np

from dinojax.core import atomic
from dinojax.core import config as config_lib
from dinojax.core import errors
from dinojax.core import log
from dinojax.core import paths
from dinojax.core import tree
from dinojax.data import captions as captions_lib
from dinojax.data import identity
from dinojax.data import tokenizers
from dinojax.engine import checkpoint
from dinojax.engine import loop
from dinojax.engine import optimizer
from dinojax.engine import report
from dinojax.engine import trackers
from dinojax.evals import aligned
from dinojax.evals import aligned_heads
from dinojax.evals import alignment
from dinojax.evals import protocol
from dinojax.evals import training
from dinojax.features import backbone as backbone_lib
from dinojax.features import preprocessing
from dinojax.features import store as store_lib
from dinojax.features import stream
from dinojax.parallel import mesh as mesh_lib
from dinojax.parallel import processes
from dinojax.probes import fit as fit_lib
from dinojax.probes import head as head_lib
from dinojax.probes.tasks import align
from dinojax.runs import assemble
from dinojax.runs import models as models_lib
from dinojax.runs import workdir as workdir_lib

HEAD = 'head'  # in the workdir
_RESIZE = 256 / 224  # short side of a validation image, for one of its square


def is_alignment(config: Any) -> bool:
  """Tells whether a config is of text alignment."""
  return alignment.SECTION in config


def train(config: Any, workdir: str) -> loop.Result:
  """Trains or resumes, measures retrieval, and keeps the heads.

  Args:
    config: ConfigDict, see evals.alignment.
    workdir: folder of the run.

  Raises:
    UserError: anything the user can mend, before work starts where possible.
  """
  settings = alignment.read(config)
  trackers.names(settings.log.trackers)
  source = captions_lib.open_captions(settings.data.train)
  held_out = settings.data.validation and captions_lib.open_captions(
      settings.data.validation)
  folder = _open(workdir, settings)
  times = Times.of(settings, len(source))
  with contextlib.ExitStack() as stack:
    holder = assemble.hold(folder, times.total, times.checkpoint, stack)
    pinned = _pinned(folder, settings.alignment.backbone)
    tokenizer = _tokenizer(folder, settings, source)
    run = _Run(settings, folder, times, tokenizer, source, held_out, pinned,
               stack)
    data = identity.Data([source, _Vocabulary(tokenizer)])
    if checkpoint.Checkpoints(folder).latest() is not None:
      note = identity.check(
          folder, data, accept=settings.data.accept_changes,
          same=processes.of_first)
      if note and processes.is_first():
        print(note, flush=True)
    if holder is None:
      return _tell_ended(loop.ended(run.job(lambda: False)), folder)
    workdir_lib.write_config(
        folder, config, {settings.alignment.backbone: pinned})
    workdir_lib.keep_data(folder, data)
    run.describe()
    result = loop.run(run.job(holder.is_lost))
    if result.finished:
      run.end(result)
  return result


@dataclasses.dataclass(frozen=True)
class Times:
  """Lengths of a run, in steps; `every` and `archive` may be None."""

  total: int
  warmup: int
  checkpoint: int
  every: int | None
  archive: int | None

  @classmethod
  def of(cls, settings: alignment.Settings, num_images: int) -> 'Times':
    """The lengths of a config on so many images.

    Raises:
      UserError: the best checkpoint is asked for at steps that none is of.
    """
    batch = settings.alignment.batch_size
    steps = lambda length: length and length.steps(
        batch_size=batch, epoch_steps=max(num_images // batch, 1))
    a, c = settings.alignment, settings.checkpoint
    out = cls(max(steps(a.total), 1), steps(a.warmup),
              max(steps(c.every), 1), steps(a.every), steps(c.archive_every))
    if c.keep_best and out.every and out.every % out.checkpoint:
      raise errors.UserError(
          f'checkpoint.keep_best=True: retrieval is measured every {out.every} '
          f'steps, and checkpoints are saved every {out.checkpoint}: set '
          'alignment.every_steps to a multiple of checkpoint.every_steps')
    return out


class _Vocabulary:
  """A vocabulary as data of a run, which may not change either."""

  def __init__(self, tokenizer: tokenizers.Tokenizer):
    self.spec, self._tokenizer = 'text.tokenizer', tokenizer

  def __len__(self) -> int:
    return self._tokenizer.num_ids

  def order(self, sizes: bool = False) -> list[str]:
    """Its digest."""
    del sizes
    return [self._tokenizer.digest]


def _open(workdir: str, settings: alignment.Settings) -> epath.Path:
  """Creates the workdir, or checks that it belongs to this config.

  Raises:
    UserError: no permission, another kind of run, or a field that changes the
      result differs.
  """
  folder = epath.Path(paths.expand(workdir))
  path = folder / models_lib.CONFIG
  with workdir_lib.writable(folder):
    folder.mkdir(parents=True, exist_ok=True)
    if not path.exists():
      return folder
  old = atomic.read_json(path, 'bring it back from a copy')
  if not is_alignment(old):
    raise errors.UserError(
        f'{folder} holds a run of pretraining: use another --workdir')
  lines = config_lib.difference(*(config_lib.flatten(
      each, results_only=True) for each in (alignment.read(old), settings)))
  if lines:
    text = '\n  '.join(lines)
    raise errors.UserError(
        f'{folder} holds a run of another config; these fields change the '
        f'result:\n  {text}\nUse another --workdir, or set them back')
  return folder


def _pinned(folder: epath.Path, source: str) -> str:
  """The backbone at the step of the first start, where it is a run."""
  path = folder / workdir_lib.SOURCES
  known = atomic.read_json(path, 'remove it: the backbone is then read at its '
                           'last step of today') if path.exists() else {}
  return processes.of_first(known.get(source) or models_lib.at_its_last_step(
      source))


def _tokenizer(folder: epath.Path, settings: alignment.Settings,
               source: captions_lib.Captions) -> tokenizers.Tokenizer:
  """The tokenizer; one that is learned is kept in the workdir."""
  file = folder / aligned_heads.LEARNED
  learns = settings.text.tokenizer == alignment.LEARNED
  # One that is there without a config is of a start that came to nothing.
  has_begun = file.exists() and (folder / models_lib.CONFIG).exists()
  if learns and processes.is_first() and not has_begun:
    print(f'learning a vocabulary of {settings.text.num_ids} ids from '
          f'{len(source.captions)} captions …', flush=True)
    tokenizers.write(tokenizers.train(
        iter(source.captions), settings.text.num_ids), str(file))
  processes.meet()
  return alignment.tokenizer_of(settings, str(file))


class _Run:
  """Everything of a run but its loop."""

  def __init__(self, settings: alignment.Settings, folder: epath.Path,
               times: Times, tokenizer: tokenizers.Tokenizer,
               source: captions_lib.Captions,
               held_out: captions_lib.Captions | None, pinned: str,
               stack: contextlib.ExitStack):
    """Loads the backbone, and plans the training.

    Raises:
      UserError: a backbone or sizes that do not fit.
    """
    self._settings, self._folder, self._times = settings, folder, times
    self._tokenizer, self._held_out = tokenizer, held_out
    self._source = source
    mesh = mesh_lib.make(settings.mesh.data, settings.mesh.fsdp)
    stack.enter_context(mesh_lib.activate(mesh))
    weights = models_lib.read(pinned)
    # As `dinojax.load` reads it; on the mesh it is in parts.
    self._digest = store_lib.digest(weights.config, weights.params)
    config = dataclasses.replace(
        weights.config, dtype=settings.alignment.dtype).for_platform(
            mesh_lib.platform(mesh))
    self._model = backbone_lib.Backbone.of(dataclasses.replace(
        weights, config=config), mesh, source=pinned)
    self._task = alignment.task(settings, self._model, tokenizer.num_ids)
    self._reading = stream.Reading(
        num_threads=settings.data.num_threads,
        num_workers=settings.data.num_workers,
        max_pixels=settings.data.max_pixels)
    self._batches = training.from_images(
        protocol.Job(self._model, {}, preprocessing.Preprocessing(), None,
                     reading=self._reading), alignment.Pairs(source),
        alignment.Example(settings.crops, tokenizer, settings.data.max_pixels,
                          self._model.value_range),
        settings.alignment.batch_size,
        group_images=self._task.group_images)
    a = settings.alignment
    curve = alignment.schedule(times.total, times.warmup)
    self._fit = fit_lib.Fit(
        self._task, self._model, self._batches.shapes,
        sweep=fit_lib.Sweep((a.learning_rate,), a.weight_decay),
        rule=optimizer.adamw(beta1=a.beta1, beta2=a.beta2),
        schedule=lambda step: {'lr': curve(step)}, seed=settings.seed,
        clip_norm=a.clip_norm, decays=align.weight_decays)

  def job(self, is_lost: Callable[[], bool]) -> loop.Job:
    """The job of the loop."""
    settings, times = self._settings, self._times
    return loop.Job(
        trainable=self._fit, mesh=self._model.mesh, workdir=self._folder,
        seed=settings.seed, total_steps=times.total,
        checkpoint_steps=times.checkpoint, archive_steps=times.archive,
        keep=settings.checkpoint.keep, batches=self._batches.make,
        evaluate=self._evaluate if self._held_out else None,
        evaluation_steps=times.every, is_lost=is_lost,
        score=_score if settings.checkpoint.keep_best else None,
        info=workdir_lib.versions(), profile=None if (
            settings.log.profile_start is None) else (
                settings.log.profile_start, settings.log.profile_steps),
        log=report.Options(
            batch_size=settings.alignment.batch_size,
            every_steps=settings.log.every_steps,
            tensorboard=settings.log.tensorboard,
            trackers=tuple(trackers.names(settings.log.trackers)),
            config=config_lib.flatten(settings),
            max_nonfinite_steps=settings.alignment.max_nonfinite_steps,
            max_bad_fraction=settings.data.max_bad_fraction))

  def _evaluate(self, step: int, heads: Mapping[str, tree.Tree],
                stop: Callable[[], bool]) -> dict[str, float]:
    """Recall of held-out captions and images, in per cent."""
    del step, stop
    side = self._settings.crops.px
    rows = aligned.recalls(
        aligned.Aligned(self._model, self._task, _first(heads),
                        self._tokenizer), self._held_out,
        preprocessing.Preprocessing(round(_RESIZE * side), side),
        self._reading)
    # Names that every tracker takes.
    return {f'retrieval/{name.replace(" ", "_").replace("@", "")}': value
            for name, value in aligned.recall_scores(rows).items()}

  def describe(self):
    """Says what is about to be trained."""
    if not processes.is_first():
      return
    shapes = self._task.nets(self._model.mesh)
    sizes = ', '.join(f'{name} {tree.num_elements(net.shapes) / 1e6:.3g} M'
                      for name, net in shapes.items())
    print(f'{len(self._source)} images with {len(self._source.captions)} '
          f'captions · batch {self._settings.alignment.batch_size} · '
          f'{self._times.total} steps · {self._model.mesh.size} × '
          f'{mesh_lib.platform(self._model.mesh)} · '
          f'{self._task.text.dtype}\nparameters: {sizes}; the backbone '
          f'{self._model.source} stays as it is', flush=True)

  def end(self, result: loop.Result):
    """Keeps the heads, and last the results."""
    params = jax.tree.map(
        lambda x: np.asarray(jax.sharding.reshard(x, jax.P())),
        _first(self._fit.evaluated(result.state)))
    if not processes.is_first():
      return
    model, task, folder = self._model, self._task, self._folder
    wanted, = task.choices.values()
    head = head_lib.Head(
        task, params, {}, head_lib.Origin(
            model.source, self._digest, tuple(wanted.widths(model.config))),
        facts={'trained on': self._settings.data.train,
               'steps': result.step, 'px': self._settings.crops.px})
    with workdir_lib.writable(folder):
      aligned_heads.save(str(folder / HEAD), head, self._tokenizer)
      atomic.write_text(folder / workdir_lib.RESULTS, json.dumps({
          'scores': {name: round(value, 3) for name, value in
                     result.evaluation.items()}, 'steps': result.step,
          'seconds': round(result.seconds, 1), 'time': time.strftime(
              '%Y-%m-%dT%H:%M:%SZ', time.gmtime())}, indent=1))
    print(f'finished {result.step} steps in {log.duration(result.seconds)}: '
          f'{folder / HEAD}, {folder / workdir_lib.RESULTS}; classes as texts: '
          f'dinojax evaluate --model={model.source} --protocols=zero_shot '
          f'--config.zero_shot.head={folder / HEAD} --test=folder:DIR',
          flush=True)


def _first(heads: Mapping[str, tree.Tree]) -> tree.Tree:
  """Parameters of the one head."""
  return jax.tree.map(lambda x: x[0], heads[align.CHOICE]['params'])


def _score(numbers: Mapping[str, float]) -> float:
  """Mean recall of the first, both ways."""
  return statistics.fmean(value for name, value in numbers.items()
                          if name.endswith('_R1'))


def _tell_ended(result: loop.Result, folder: epath.Path) -> loop.Result:
  """Says that there was nothing to do."""
  if processes.is_first():
    print(f'{folder} has ended at step {result.step}: nothing to do',
          *(f'{name} {value:.2f}' for name, value
            in result.evaluation.items()), sep=' · ', flush=True)
  return result
