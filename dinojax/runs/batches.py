"""Batches of a config: its sources, crops and masks, from any step on."""

from collections.abc import Iterator

import jax

from dinojax.data import pipeline
from dinojax.train import settings as settings_lib


def make(settings: settings_lib.Settings, training: list, homogeneous: list,
         step: int, gram_start: int = 0) -> Iterator[dict]:
  """This process's batches from `step` on, see pipeline.train_batches."""
  data, train = settings.data, settings.train
  plan = pipeline.Plan(
      mixed=tuple(training), homogeneous=tuple(homogeneous),
      seed=settings.seed, batch_size=train.batch_size,
      group_images=train.group_images, crops=settings.made_crops,
      masks=settings.chosen,
      patch_px=settings.model.token_px, max_pixels=data.max_pixels,
      value_range=tuple(data.value_range), gram_start=gram_start)
  return pipeline.train_batches(
      plan, step, process_index=jax.process_index(),
      process_count=jax.process_count(), num_workers=data.num_workers,
      num_threads=data.num_threads)
