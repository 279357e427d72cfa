"""k-NN of the EMA teacher while it trains, beside two baselines.

Raw pixels and the untrained network say what of the number was learned.
"""

from collections.abc import Callable

import jax
import numpy as np

from dinojax.core import errors
from dinojax.data import sources
from dinojax.evals import features
from dinojax.evals import knn
from dinojax.parallel import sharding
from dinojax.train import recipe as recipe_lib


def make(recipe: recipe_lib.Recipe, mesh: jax.sharding.Mesh,
         given: Callable[[dict], dict] | None = None
         ) -> Callable[[int, dict], dict] | None:
  """The evaluator of a run, or None without labelled validation images.

  Args:
    recipe: what is trained.
    mesh: the devices.
    given: puts the weights that a run starts from into fresh parameters.

  Returns:
    (step, teacher parameters) to knn/trained, knn/untrained, knn/raw_pixels
    and knn/start (of given weights) in per cent; see `guard` for its error.

  Raises:
    UserError: a source without labels.
  """
  settings = recipe.settings
  plan = settings.knn
  if not (plan.validation or settings.data.validation):
    return None
  train = _labelled(plan.train or settings.data.mixture[0][0], 'knn.train')
  test = _labelled(plan.validation or settings.data.validation,
                   'knn.validation')
  embed = features.embedder(
      recipe.teacher, settings.augment.mean, settings.augment.std,
      settings.model.compute_dtype)

  def extract(params, source, limit):
    return features.extract(
        embed, params, source, mesh=mesh, batch_size=plan.batch_size,
        indices=spread(len(source), limit), resize_px=plan.resize_px,
        crop_px=plan.crop_px, num_threads=settings.data.num_threads,
        mean=settings.augment.mean, std=settings.augment.std)

  def measure(params):
    return (extract(params, train, plan.max_train_images),
            extract(params, test, plan.max_validation_images))

  def score(name, pair):
    a, b = pair
    return knn.top1(
        getattr(a, name), a.labels, getattr(b, name), b.labels, k=plan.k,
        temperature=plan.temperature)

  baselines: dict[str, float] = {}

  def evaluate(step: int, teacher: dict) -> dict[str, float]:
    pair = measure(teacher)
    if not baselines:
      fresh = untrained(recipe, mesh)
      baselines['knn/raw_pixels'] = score('pixels', pair)
      baselines['knn/untrained'] = score('cls', measure(fresh))
      if given:
        baselines['knn/start'] = score('cls', measure(given(fresh)))
    found = {'knn/trained': score('cls', pair), **baselines}
    guard(step, found, settings.init.max_knn_drop)
    return found

  return evaluate


def guard(step: int, found: dict[str, float], most: float | None):
  """Ends a run that forgets what it was given.

  Raises:
    UserError: knn/trained is more than `most` points below knn/start.
  """
  trained = found['knn/trained']
  start = found.get('knn/start', trained)
  if most is None or trained >= start - most:
    return
  raise errors.UserError(
      f'k-NN has fallen from {start:.2f} to {trained:.2f} at step {step}, by '
      f'more than init.max_knn_drop={most}: training destroys what '
      'init.source knew. Freeze the backbone for longer while new heads learn '
      '(init.freeze_backbone_steps), or lower schedules.lr.peak; checkpoints '
      'until here are kept')


def untrained(recipe: recipe_lib.Recipe, mesh: jax.sharding.Mesh) -> dict:
  """The network as it was before the first step."""
  shardings = sharding.shardings(recipe.teacher.shapes, mesh)
  key = jax.random.fold_in(jax.random.key(recipe.settings.seed), 0)
  return jax.jit(recipe.student.init, out_shardings=shardings)(key)


def spread(count: int, limit: int) -> np.ndarray:
  """At most `limit` indices, evenly over 0..count−1."""
  if count <= limit:
    return np.arange(count)
  return np.linspace(0, count - 1, limit).round().astype(int)


def _labelled(spec: str, key: str) -> sources.Source:
  source = sources.open_source(spec)
  if not source.classes:
    raise errors.UserError(
        f'{key}={spec} has no labels: k-NN needs a source with classes '
        '(sub-folders), or set data.validation=None')
  return source
