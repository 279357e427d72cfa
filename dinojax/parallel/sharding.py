"""Which axis of a parameter is split, and how its parts come together.

Parameters, EMA and moments are split over `fsdp` by one rule on paths and
shapes. The network runs under `shard_map` on local rows, and `gather` brings
a module's parameters together in the compute dtype just before use; its
backward scatters gradients in float32. Nothing else names a mesh axis.
"""

from collections.abc import Callable
import math

from flax import nnx
import jax
from jax import P
import jax.numpy as jnp

from dinojax.core import tree
from dinojax.parallel import mesh as mesh_lib

ROWS = mesh_lib.ROWS
# Smaller leaves (norms, biases of small models) cost more to gather than to
# keep everywhere.
MIN_ELEMENTS = 4096
_AXIS = 'fsdp_axis'  # metadata of nnx.Param: sharded axis, from the end


def split_axis(name: str, shape: tuple[int, ...], size: int) -> int | None:
  """The axis of a leaf that is split in `size` parts, counted from the end.

  The largest axis that divides evenly; never the leading (layer) axis of
  stacked blocks, which the scan walks over. None: the leaf is replicated.
  """
  first = 1 if 'blocks/' in name else 0
  if size == 1 or math.prod(shape) < MIN_ELEMENTS:
    return None
  axes = [i for i in range(first, len(shape)) if shape[i] % size == 0]
  if not axes:
    return None
  return max(axes, key=lambda i: (shape[i], i)) - len(shape)


def specs(params: tree.Tree, mesh: jax.sharding.Mesh) -> tree.Tree:
  """Full-rank PartitionSpec of every leaf of a tree of parameters."""
  size = mesh.shape[mesh_lib.FSDP]

  def spec(name, leaf):
    parts = [None] * len(leaf.shape)
    axis = split_axis(name, leaf.shape, size)
    if axis is not None:
      parts[axis] = mesh_lib.FSDP
    return P(*parts)

  return tree.map_with_name(spec, params)


def shardings(params: tree.Tree, mesh: jax.sharding.Mesh) -> tree.Tree:
  """NamedSharding of every leaf, for out_shardings and restores."""
  return jax.tree.map(
      lambda spec: jax.NamedSharding(mesh, spec), specs(params, mesh),
      is_leaf=lambda x: isinstance(x, P))


def annotate(module: nnx.Module, mesh: jax.sharding.Mesh) -> nnx.Module:
  """Writes each parameter's split axis into its metadata; for `gather`."""
  size = mesh.shape[mesh_lib.FSDP]
  for path, variable in nnx.to_flat_state(nnx.state(module, nnx.Param)):
    name = '/'.join(map(str, path))
    axis = split_axis(name, variable.shape, size)
    variable.set_metadata(**{_AXIS: axis})
  return module


def gather(module: nnx.Module, dtype: jnp.dtype) -> nnx.Module:
  """The module with whole parameters in `dtype`; inside `on_rows` only.

  Forward: an all-gather of the cast parts over `fsdp`. Backward: the
  gradient, cast to float32, is summed and scattered over `fsdp` and nothing
  else; the sum over `data` happens once, outside the scan (see `on_rows`).
  """
  def whole(variable):
    axis = variable.get_metadata()[_AXIS]
    return variable.replace(_gather_leaf(variable.get_value(), axis, dtype))

  return jax.tree.map(
      whole, module, is_leaf=lambda x: isinstance(x, nnx.Variable))


def _gather_leaf(part: jax.Array, axis: int | None, dtype) -> jax.Array:
  """One leaf of `gather`; the split axis is counted from the end."""
  if axis is None:
    return _cast(part, dtype)
  position = part.ndim + axis

  @jax.custom_vjp
  def collect(part):
    return jax.lax.all_gather(
        part.astype(dtype), mesh_lib.FSDP, axis=position, tiled=True)

  def forward(part):
    return collect(part), None

  def backward(_, cotangent):
    # Only the axis that the forward gathered: shard_map's own transpose sums
    # over every axis the in_spec does not name.
    return (jax.lax.psum_scatter(
        cotangent.astype(jnp.float32), mesh_lib.FSDP,
        scatter_dimension=position, tiled=True),)

  collect.defvjp(forward, backward)
  return collect(part)


def _cast(part: jax.Array, dtype) -> jax.Array:
  return part.astype(dtype) if jnp.issubdtype(
      part.dtype, jnp.floating) else part


def on_rows(function: Callable, params_specs: tree.Tree) -> Callable:
  """Runs `function(params, rows)` on each device's own rows.

  Args:
    function: takes the local parts of the parameters and a tree of arrays
      whose leading axis is rows (images, groups, or anything batch-major);
      returns such a tree.
    params_specs: `specs` of the parameters.

  Returns:
    The function over global arrays.
  """
  def local(params, rows):
    # Parts vary over the axes they are replicated on from here: so the sum of
    # their gradients over these axes happens once a step, on float32 parts,
    # and not for every block inside the scan.
    params = jax.tree.map(_vary, params)
    return function(params, rows)

  return lambda params, rows: jax.shard_map(
      local, in_specs=(params_specs, ROWS), out_specs=ROWS)(params, rows)


def _vary(part: jax.Array) -> jax.Array:
  varying = jax.typeof(part).manual_axis_type.varying
  missing = tuple(a for a in mesh_lib.AXES if a not in varying)
  return jax.lax.pcast(part, missing, to='varying') if missing else part


def split_rows(rows: tree.Tree, num_parts: int) -> tree.Tree:
  """[r, …] leaves to [num_parts, r/num_parts, …], without communication.

  Part i holds the i-th chunk of every device's own rows.
  """
  def local(rows):
    return jax.tree.map(
        lambda x: x.reshape(num_parts, -1, *x.shape[1:]), rows)

  return jax.shard_map(
      local, in_specs=ROWS, out_specs=P(None, mesh_lib.AXES))(rows)


def merge_rows(parts: tree.Tree) -> tree.Tree:
  """The inverse of `split_rows`."""
  def local(parts):
    return jax.tree.map(
        lambda x: x.reshape(-1, *x.shape[2:]), parts)

  return jax.shard_map(
      local, in_specs=P(None, mesh_lib.AXES), out_specs=ROWS)(parts)


def abstract_rows(rows: tree.Tree, mesh: jax.sharding.Mesh) -> tree.Tree:
  """Shapes of row-split arrays, to compile for before they exist."""
  place = jax.NamedSharding(mesh, ROWS)
  return jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), rows)


def constrain(x: jax.Array, spec: P = ROWS) -> jax.Array:
  """Moves `x` to `spec`: rows over all devices, or P() for everywhere."""
  return jax.sharding.reshard(x, P(*spec, *[None] * (x.ndim - len(spec))))


def group(x: jax.Array, size: int) -> jax.Array:
  """[r, …] to [r/size, size, …]; rows of a group are consecutive.

  Groups that span devices are brought together on every device.
  """
  mesh = jax.sharding.get_abstract_mesh()
  groups = x.shape[0] // size
  spec = P() if groups % mesh.size else ROWS
  shape = (groups, size, *x.shape[1:])
  return constrain(x, spec).reshape(
      shape, out_sharding=P(*spec, *[None] * (len(shape) - len(spec))))
