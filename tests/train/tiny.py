"""A recipe small enough to compile in seconds, with everything random on."""

from collections.abc import Callable
import functools

import jax
import numpy as np

from dinojax.data import masking
from dinojax.parallel import mesh as mesh_lib
from dinojax.parallel import processes
from dinojax.train import method as method_lib
from dinojax.train import settings as settings_lib
from dinojax.train import state as state_lib
from dinojax.train import step as step_lib

LR = 1e-3


def config(**changes) -> dict:
  """Nested config; changes as section__key=value."""
  curve = lambda start, peak, end: dict(start=start, peak=peak, end=end)
  head = dict(num_prototypes=128, hidden_dim=64, bottleneck_dim=32)
  out = dict(
      model=dict(
          embed_dim=64, depth=4, num_heads=2, patch_px=4, image_px=16,
          position='rope', rope_rescale=2.0, rope_shift=0.1, num_registers=2,
          drop_path_rate=0.25, layerscale=1.0, dtype='float32',
          packing='stream', attention='head_major'),
      data=dict(train='photos'),
      crops=dict(global_px=16, local_px=8, num_local=2),
      masks={}, augment={}, teacher={}, dino=dict(head), ibot=dict(head),
      koleo=dict(group_images=2), gram={}, knn={},
      report=dict(at_end=False, patch_images=0),
      optimizer=dict(layerwise_decay=0.9),
      schedules=dict(
          lr=curve(LR, LR, LR), weight_decay=curve(0.04, 0.04, 0.4),
          momentum=curve(0.9, 0.9, 1.0), lr_rule='none',
          teacher_temperature=curve(0.07, 0.07, 0.07)),
      train=dict(batch_size=16, total_steps=20, group_images=2))
  for key, value in changes.items():
    part, _, name = key.partition('__')
    out[part][name] = value
  return out


def batch(settings, step: int) -> dict:
  """Random crops of the whole global batch; real masks, if there are any."""
  rng = np.random.default_rng(step)
  masks = {} if settings.chosen is None else masks_of(settings, rng)
  b = settings.train.batch_size
  crop = lambda views, px: rng.normal(
      size=(b, views, px, px, 3)).astype(np.float32)
  out = {'global': crop(2, settings.crops.global_px)}
  if settings.crops.num_local:
    out['local'] = crop(settings.crops.num_local, settings.crops.local_px)
  return out | masks | {'bad': np.zeros(b, bool)}


def masks_of(settings, rng: np.random.Generator) -> dict:
  """The part of a batch that tells which patches are hidden."""
  b, group = settings.train.batch_size, settings.train.group_images
  side = settings.crops.global_px // settings.model.token_px
  masks, groups = [], masking.num_groups(group, settings.chosen)
  for place in range(b // group):
    counts = masking.row_counts(
        2 * group, side * side, settings.chosen, rng, groups=groups,
        hand=place % groups)
    masks.append([masking.row_mask(rng, (side, side), int(n), 8,
                                   settings.chosen).reshape(-1)
                  for n in counts])
  masks = np.array(masks)
  size = masking.num_masked(
      2 * group, side * side, settings.chosen, groups)
  pairs = [masking.collate(m, size) for m in masks]
  return {'mask': masks.reshape(b, 2, -1),
          'mask_index': np.stack([p[0] for p in pairs]),
          'mask_weight': np.stack([p[1] for p in pairs])}


def share(rows: dict, index: int, count: int) -> dict:
  """One process's part of a global batch."""
  return {k: v[len(v) * index // count:len(v) * (index + 1) // count]
          for k, v in rows.items()}


def program(settings, mesh):
  """The recipe, its fresh state and the compiled step."""
  method = method_lib.build(settings, mesh, epoch_steps=100)
  state = state_lib.create(method, mesh, settings.seed)
  keep = jax.tree.map(lambda x: x.sharding, state)
  step = jax.jit(functools.partial(step_lib.train_step, method=method),
                 out_shardings=(keep, None))
  return method, state, step


def compiled(settings, mesh):
  """As `program`, with a step that is compiled and takes no other shapes."""
  method, state, step = program(settings, mesh)
  rows = share(batch(settings, 0), jax.process_index(), jax.process_count())
  rows = processes.to_devices(rows, mesh)
  return method, state, step.lower(state, rows).compile()


def run(shape: tuple[int, int], steps: int = 5,
        look: Callable[[str], None] = lambda text: None, **changes):
  """Metrics of every step, first gradients and final student.

  Args:
    shape: of the mesh.
    steps: how many.
    look: gets the text of the compiled step.
    **changes: of the config, see there.
  """
  settings = settings_lib.read(config(**changes))
  devices = jax.devices()[:shape[0] * shape[1]]
  mesh = mesh_lib.make(*shape, devices=devices)
  settings_lib.check_devices(settings, mesh.size)
  with mesh_lib.activate(mesh):
    _, state, step = compiled(settings, mesh)
    look(step.as_text())
    return follow(settings, mesh, state, step, 0, steps)[:3]


def follow(settings, mesh, state, step, start: int, end: int):
  """Metrics of the steps, the first one's gradients, student and state."""
  metrics, moments = [], None
  for i in range(start, end):
    rows = share(batch(settings, i), jax.process_index(), jax.process_count())
    state, out = step(state, processes.to_devices(rows, mesh))
    metrics.append({k: float(v) for k, v in out.items()})
    if moments is None:  # after one step, mu = (1 − beta1) · gradient
      moments = everywhere(alone(state)['opt']['mu'])
  return metrics, moments, everywhere(alone(state)['student']), state


def alone(state: dict) -> dict:
  """The entries of the student of a state that has one."""
  student, = state['students'].values()
  return student


def everywhere(tree):
  """Whole arrays on the host, on every process."""
  if jax.process_count() == 1:
    return jax.device_get(tree)
  from jax.experimental import multihost_utils
  return jax.tree.map(
      lambda x: np.asarray(multihost_utils.process_allgather(x, tiled=True)),
      tree)
