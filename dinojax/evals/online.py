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


def make(recipe: recipe_lib.Recipe,
         mesh: jax.sharding.Mesh) -> Callable[[int, dict], dict] | None:
  """The evaluator of a run, or None without labelled validation images.

  Returns:
    (step, teacher parameters) to knn/trained, knn/untrained, knn/raw_pixels
    in per cent.

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
      baselines['knn/raw_pixels'] = score('pixels', pair)
      baselines['knn/untrained'] = score(
          'cls', measure(untrained(recipe, mesh)))
    return {'knn/trained': score('cls', pair), **baselines}

  return evaluate


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
