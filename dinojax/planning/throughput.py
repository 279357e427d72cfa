"""How fast images come, and how fast the step takes them."""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import dataclasses
import functools
import math
import time

import jax
import jax.numpy as jnp
import numpy as np

from dinojax.core import errors
from dinojax.core import tree
from dinojax.engine import program
from dinojax.parallel import mesh as mesh_lib
from dinojax.parallel import processes
from dinojax.planning import flops
from dinojax.train import batch as batch_lib
from dinojax.train import method as method_lib
from dinojax.train import pretraining
from dinojax.train import settings as settings_lib
from dinojax.train import state as state_lib

_GIB = 2**30
# Batches that are not counted: workers start, and what they made meanwhile
# comes at once.
_COLD = 3
_LONGEST_S = 90.0


def matrix_flops(dtype: jnp.dtype, device: jax.Device,
                 seconds: float = 0.5,
                 clock: Callable[[], float] = time.monotonic) -> float:
  """Multiplications and additions a second of one device, in `dtype`."""
  side = 1024 if device.platform == 'cpu' else 8192
  # Random: products of zeros draw less power, and run faster than real ones.
  with jax.default_device(device):
    a, b = jax.random.normal(jax.random.key(0), (2, side, side)).astype(dtype)
  multiply = jax.jit(jnp.matmul)
  jax.block_until_ready(multiply(a, b))
  done, count, began = 0, 1, clock()
  while (spent := clock() - began) < seconds:
    for _ in range(count):  # none is kept: they would fill the memory
      out = multiply(a, b)
    out.block_until_ready()
    done, count = done + count, 2 * count
  return done * 2 * side ** 3 / spent


def input_rate(batches: Iterator[dict], seconds: float) -> float:
  """Images a second of this process's pipeline, its cold start excluded.

  Args:
    batches: fresh from the pipeline; closed afterwards. Small ones give
      the same rate sooner.
    seconds: approximate length of the measurement.
  """
  times, images = [], 0
  with contextlib.closing(batches):
    began = time.monotonic()
    for batch in batches:
      times.append(time.monotonic())
      images = len(batch['row'])
      warm = len(times) > _COLD and times[-1] - times[_COLD] >= seconds
      if warm or (len(times) > 1 and times[-1] - began > _LONGEST_S):
        break
  return rate(times, images)


def rate(times: Sequence[float], images: int) -> float:
  """Images a second, of batches of `images` that came at `times`."""
  times = times[min(_COLD, len(times) - 2):]
  return (len(times) - 1) * images / max(times[-1] - times[0], 1e-9)


def state_gib(method: method_lib.Method, mesh: jax.sharding.Mesh) -> float:
  """GiB of the whole training state, as a checkpoint holds it."""
  state = state_lib.abstract(method, mesh)
  return 4 * tree.num_elements(state) / _GIB


def step_flops(method: method_lib.Method, mesh: jax.sharding.Mesh) -> float:
  """FLOPs that a step needs, by formula."""
  rows = batch_lib.abstract(method.settings, mesh)
  masked = math.prod(rows['mask_index'].shape) if 'mask_index' in rows else 0
  return flops.step(
      method.settings, masked,
      method.teacher.config if method.has_frozen_teacher else None)


@dataclasses.dataclass(frozen=True)
class Program:
  """A compiled step; memory is that of one device."""

  step: Callable[[dict, dict], tuple[dict, dict]]
  peak_gib: float
  compile_s: float


def compiled(method: method_lib.Method, mesh: jax.sharding.Mesh) -> Program:
  """The step that training runs, as it runs it.

  Raises:
    UserError: the compiler finds that it does not fit.
  """
  began = time.monotonic()
  step = program.planned(pretraining.Pretraining(method, mesh), mesh)
  try:
    step = step.traced.lower().compile(mesh_lib.compiler_options(
        mesh, deterministic=method.settings.train.deterministic))
  except jax.errors.JaxRuntimeError as error:
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    raise errors.UserError(
        f'the step does not fit: {str(error).splitlines()[0]}; set mesh.fsdp '
        'above 1, train.num_micro_batches to more, or model.remat=blocks'
    ) from error
  m = step.memory_analysis()
  peak = (m.argument_size_in_bytes + m.temp_size_in_bytes
          + m.output_size_in_bytes - m.alias_size_in_bytes)
  return Program(step, peak / _GIB, time.monotonic() - began)


def step_seconds(step: Program, method: method_lib.Method,
                 mesh: jax.sharding.Mesh, steps: int,
                 clock: Callable[[], float] = time.monotonic) -> float:
  """Mean seconds of `steps` steps on made-up images, augmentation included.

  Raises:
    UserError: it does not fit into the memory of a device.
  """
  settings = method.settings
  batch = processes.to_devices(_batch(settings, mesh), mesh)
  prepare = jax.jit(functools.partial(method_lib.prepare, settings))
  try:
    state = state_lib.create(method, mesh, settings.seed)
    # The first one is not counted: it also fills caches.
    for i in range(steps + 1):
      state, metrics = step.step(state, prepare(batch, np.int32(i)))
      jax.block_until_ready(metrics)
      if i == 0:
        began = clock()
  except jax.errors.JaxRuntimeError as error:
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    raise errors.UserError(
        f'the step does not fit: {str(error).splitlines()[0]}') from error
  return (clock() - began) / steps


def _batch(settings: settings_lib.Settings, mesh: jax.sharding.Mesh) -> dict:
  """This process's rows of a batch: noise, with masks of the right number."""
  rng = np.random.default_rng(0)
  out = {}
  for name, x in batch_lib.abstract(settings, mesh).items():
    shape = (x.shape[0] // jax.process_count(), *x.shape[1:])
    out[name] = (
        rng.integers(0, 256, shape, np.uint8) if x.dtype == np.uint8
        else np.ones(shape, x.dtype) if name == 'mask_weight'
        else np.zeros(shape, x.dtype))
    if name in ('row', 'mask_index'):
      out[name] += np.arange(shape[-1], dtype=x.dtype)
  return out
