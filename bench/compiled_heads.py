"""Training steps of heads, compiled for TPUs that are not here.

  python -m bench.compiled_heads [--parts text masks boxes]

`text`: text alignment as published, ViT-L/16 and 24 blocks of 1280, on several
slices: memory of a device, and the largest arrays that are of pairs. `masks`:
the plain mask decoder on a frozen ViT-L at 512 pixels. `boxes`: a layer of the
detector's decoder with its gradients, of the sizes published, 1,024 pixels and
one image a device. Prints a JSON line each; memory and roofline are estimates
of the compiler, see docs/planning.md.
"""

import argparse
import json
import os
import re

os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import jax
from jax import P
import jax.numpy as jnp

from dinojax.configs import dinotxt
from dinojax.core import chips
from dinojax.engine import optimizer
from dinojax.engine import program
from dinojax.evals import alignment
from dinojax.evals import mask_heads
from dinojax.evals.protocols import segmentation
from dinojax.features import backbone
from dinojax.models import families
from dinojax.models import network
from dinojax.models import zoo
from dinojax.models.dense import box_decoder
from dinojax.parallel import mesh as mesh_lib
from dinojax.parallel import topologies
from dinojax.planning import plan
from dinojax.probes import fit as fit_lib
from dinojax.probes.tasks import align
from dinojax.probes.tasks import dense

MODEL = 'dinov3_vitl16'
_MOST = 16  # places of a program that are printed
TEXT = (('v5e:8x8', 4096), ('v5e:16x16', 4096), ('v5e:16x16', 16_384))


def main():
  """Prints a line for each step."""
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
  parser.add_argument('--parts', nargs='*', default=('text', 'masks', 'boxes'))
  options = parser.parse_args()
  if 'text' in options.parts:
    for topology, batch in TEXT:
      print(json.dumps(text(topology, batch)), flush=True)
  if 'masks' in options.parts:
    print(json.dumps(masks('v5e:4x4')), flush=True)
  if 'boxes' in options.parts:
    print(json.dumps(boxes('v5e:4x4')), flush=True)


def model_on(mesh: jax.sharding.Mesh) -> backbone.Backbone:
  """The backbone, by its shapes alone."""
  config = zoo.vit_config(MODEL, dtype='auto').for_platform(
      mesh_lib.platform(mesh))
  with mesh_lib.activate(mesh):
    net = network.functional(families.make, config, mesh)
  shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(
      x.shape, config.compute_dtype), net.shapes)
  return backbone.Backbone(config, shapes, mesh, mean=(0.5,) * 3,
                           std=(0.5,) * 3)


def text(topology: str, batch: int) -> dict:
  """Numbers of a step of text alignment."""
  mesh = mesh_lib.make(-1, 16, devices=topologies.devices(topology))
  c = dinotxt.get_config()
  c.alignment.backbone, c.data.train = MODEL, 'csv:nowhere'
  c.alignment.batch_size = batch
  c.alignment.dtype = 'bfloat16'
  settings = alignment.read(c)
  model = model_on(mesh)
  with mesh_lib.activate(mesh):
    task = alignment.task(settings, model, 49_408)
    fit = fit_of(task, model, batch, settings.crops.px, {
        'tokens': (jnp.int32, settings.text.context)},
                 decays=align.weight_decays)
    return {'part': 'text', 'batch': batch} | numbers(
        fit, mesh, topology, batch)


def masks(topology: str, batch: int = 16) -> dict:
  """Numbers of a step of the plain mask decoder."""
  mesh = mesh_lib.make(devices=topologies.devices(topology))
  settings = segmentation.Settings(recipe='masks').resolved
  model = model_on(mesh)
  with mesh_lib.activate(mesh):
    task = mask_heads.task(
        settings, model, 150, num_layers=settings.layers, distorts=True,
        pixels=dense.Pixels(model.mean, model.std, model.config.side_px),
        most_targets=segmentation.MOST_TARGETS)
    fit = fit_of(task, model, batch, settings.crop_px, {
        'classes': (jnp.uint8, settings.crop_px, settings.crop_px),
        'extent': (jnp.int32, 2)}, clip_norm=mask_heads.CLIP_NORM)
    return {'part': 'masks', 'batch': batch} | numbers(
        fit, mesh, topology, batch)


def boxes(topology: str, queries: int = 1800, cells: int = 64) -> dict:
  """Numbers of a layer of the detector's decoder."""
  mesh = mesh_lib.make(devices=topologies.devices(topology))
  config = box_decoder.Config(num_classes=1, num_layers=1)
  batch, width = mesh.size, config.hidden
  with mesh_lib.activate(mesh):
    places = lambda spec: jax.NamedSharding(mesh, spec)
    params = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=places(P())),
        jax.eval_shape(lambda: {
            'decoder': box_decoder.init(jax.random.key(0), config),
            'heads': jax.tree.map(lambda x: x[None], box_decoder.head_init(
                jax.random.key(0), config))}))
    rows = lambda *shape: jax.ShapeDtypeStruct(
        (batch, *shape), jnp.float32, sharding=places(mesh_lib.ROWS))

    def loss(params, states, values, where, around, edges, extent):
      seen = box_decoder.Map(values, around, jnp.full_like(
          extent, cells, jnp.int32))
      return jnp.sum(box_decoder.apply(
          params['decoder'], params['heads'], config, states, where, edges,
          seen, extent)[1] ** 2)

    traced = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).trace(
        params, rows(queries, width), rows(cells, cells, width),
        rows(queries, width), rows(cells, cells, width), rows(queries, 4),
        rows(2))
    return {'part': 'boxes', 'queries': queries} | of_program(
        traced, mesh, topology, batch)


def fit_of(task, model, batch: int, side: int, more: dict, **options):
  """Training of a head, by shapes alone."""
  rows = lambda dtype, *shape: fit_lib.rows(model.mesh, dtype, batch, *shape)
  return fit_lib.Fit(
      task, model, {
          'image': rows(jnp.uint8, side, side, 3), 'bad': rows(jnp.bool_),
          'weight': rows(jnp.float32)} | {
              name: rows(*shape) for name, shape in more.items()},
      sweep=fit_lib.Sweep((1e-4,), 0.05), rule=optimizer.adamw(),
      schedule=lambda step: {}, **options)


def numbers(fit: fit_lib.Fit, mesh: jax.sharding.Mesh, topology: str,
            batch: int) -> dict:
  """Numbers of a step of training."""
  return of_program(program.planned(fit, mesh).traced, mesh, topology, batch)


def of_program(traced: jax.stages.Traced, mesh: jax.sharding.Mesh,
               topology: str, batch: int) -> dict:
  """Memory of a device, what it sends, and where the time goes."""
  out, step = plan.of_step(traced.lower(), mesh, topology, {
      'model_flops_per_step': 0.0, 'total_steps': None})
  pairs = [tuple(map(int, shape.split(','))) for shape in re.findall(
      r'f32\[(\d+,\d+)\]', step.as_text())]
  roofline = out['roofline'] or {}
  return {'topology': topology, 'devices': mesh.size, 'mesh': out['mesh'],
          **{name: round(out[name], 3) for name in (
              'arguments_gib', 'temporaries_gib', 'peak_gib')},
          'has_b_by_b': (batch, batch) in pairs,
          'most_of_pairs': max((shape for shape in pairs if batch in shape),
                               key=lambda x: x[0] * x[1], default=None),
          'dearest': {place['name']: {
              'ms': round(1e3 * place['seconds'], 2),
              'tflop': round(place['padded_flops'] / 1e12, 3),
              'gb': round(place['hbm_bytes'] / 1e9, 2)}
                      for place in roofline.get('items', ())[:_MOST]},
          'step_s': roofline.get('step_s'), 'executed_tflops': out[
              'executed_flops_per_step'] / 1e12,
          # Of the FLOPs that the program executes.
          'roofline_mfu_pct': roofline and 100 * out[
              'executed_flops_per_step'] / mesh.size / (
                  roofline['step_s']['no_overlap'] * peak(topology))}


def peak(topology: str) -> float:
  """FLOP/s of a device in bfloat16."""
  chip = chips.of_topology(topology)
  return chip.bf16_flops / chip.cores


if __name__ == '__main__':
  main()
