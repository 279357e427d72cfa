"""Sharding: the axis of a parameter that is split, and how parts are joined.

Parameters, EMA and moments are split over `fsdp` by one rule on paths and
shapes. The network runs under `shard_map` on local rows, and `gather` brings
a module's parameters together in the compute dtype just before use; its
backward scatters gradients in float32. Prototypes are never brought together:
`gather_rows` brings the rows to them, and logits stay split by prototype.
Nothing else names a mesh axis.
"""

from collections.abc import Callable, Sequence
import functools
import math
import re

from flax import nnx
import jax
from jax import P
import jax.numpy as jnp

from dinojax.core import errors
from dinojax.core import tree
from dinojax.parallel import mesh as mesh_lib

ROWS = mesh_lib.ROWS
# Smaller leaves (norms, biases of small models) cost more to gather than to
# keep everywhere.
MIN_ELEMENTS = 4096
_AXIS = 'fsdp_axis'  # metadata of nnx.Param: sharded axis, from the end
_always_split: list[re.Pattern] = []  # see split_by_column


def split_by_column(pattern: str):
  """Makes leaves be split along their last axis, whatever their size.

  The module that owns them says so when it is imported.

  Args:
    pattern: found in the paths of such leaves, whose columns stay whole.
  """
  _always_split.append(re.compile(pattern))


def split_axis(name: str, shape: tuple[int, ...], size: int) -> int | None:
  """The axis of a leaf that is split in `size` parts, counted from the end.

  The last axis where it divides evenly: of rows the TPU compiler may pad a
  gradient and sum it whole, which sends twice as much. Else the largest that
  does; never the leading (layer) axis of stacked blocks, which the scan walks
  over. None: the leaf is replicated.
  What `split_by_column` names is always split, each column stays whole.

  Raises:
    UserError: columns (prototypes) that cannot be split.
  """
  if size > 1 and any(p.search(name) for p in _always_split):
    if shape[-1] % size:
      raise errors.UserError(
          f'{shape[-1]} prototypes ({name}) cannot be split over mesh.fsdp='
          f'{size} devices: set mesh.fsdp to {math.gcd(shape[-1], size)} and '
          'mesh.data to -1, or, in a new run, num_prototypes to a multiple of '
          f'{size}')
    return -1
  first = 1 if 'blocks/' in name else 0
  if size == 1 or math.prod(shape) < MIN_ELEMENTS:
    return None
  axes = [i for i in range(first, len(shape)) if shape[i] % size == 0]
  if not axes:
    return None
  if axes[-1] == len(shape) - 1:
    return -1
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


def abstract(params: tree.Tree, mesh: jax.sharding.Mesh) -> tree.Tree:
  """Shapes, dtypes and places of parameters: the target of a restore."""
  return jax.tree.map(
      lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
      params, shardings(params, mesh))


def annotate(module: nnx.Module, mesh: jax.sharding.Mesh) -> nnx.Module:
  """Writes each parameter's split axis into its metadata; for `gather`."""
  size = mesh.shape[mesh_lib.FSDP]
  for path, variable in nnx.to_flat_state(nnx.state(module, nnx.Param)):
    name = '/'.join(map(str, path))
    axis = split_axis(name, variable.shape, size)
    variable.set_metadata(**{_AXIS: axis})
  return module


def gather(module: nnx.Module, dtype: jnp.dtype) -> nnx.Module:
  """The module with whole parameters in `dtype`; inside `shard_map` only.

  Vectors (biases, scales) stay as they are, float32: their gradients are sums
  over rows, and are added up and sent in float32 (see models.vectors).
  Forward: an all-gather of the cast parts over `fsdp`. Backward: the
  gradient, cast to float32, is summed and scattered over `fsdp` and nothing
  else; the sum over `data` happens once, outside the scan (see `varying`).
  """
  def whole(variable):
    axis, part = variable.get_metadata()[_AXIS], variable.get_value()
    return variable.replace(_gather_leaf(
        part, axis, part.dtype if part.ndim == 1 else dtype))

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
        scatter_dimension=position, tiled=True).astype(part.dtype),)

  collect.defvjp(forward, backward)
  return collect(part)


def gather_rows(x: jax.Array, columns: nnx.Variable) -> jax.Array:
  """The rows that meet this device's columns: those of all its fsdp peers.

  Inside `shard_map` only. Backward: each row's gradients, one for each part of
  the columns, are summed in float32 and go back to its device.

  Args:
    x: [r, ...] of this device.
    columns: a parameter; where it is not split, x stays as it is.

  Returns:
    [fsdp · r, ...].
  """
  if columns.get_metadata().get(_AXIS) is None:
    return x
  return _gather_leaf(x, -x.ndim, x.dtype)


def columns(ndim: int) -> P:
  """Rows over `data`, the last axis over `fsdp`: how logits are split."""
  return P(mesh_lib.DATA, *[None] * (ndim - 2), mesh_lib.FSDP)


def beside_columns(x: jax.Array) -> jax.Array:
  """[r, …] about rows, split as the rows of `columns` are."""
  return constrain(x, P(mesh_lib.DATA))


def as_columns(x: jax.Array) -> jax.Array:
  """[k] about columns, split as the columns of `columns` are."""
  return constrain(x, P(mesh_lib.FSDP))


def _cast(part: jax.Array, dtype) -> jax.Array:
  return part.astype(dtype) if jnp.issubdtype(
      part.dtype, jnp.floating) else part


def varying(params: tree.Tree) -> tree.Tree:
  """A device's parts of the parameters, as `shard_map` is to sum gradients.

  Parts vary over the axes they are replicated on from here: so the sum of
  their gradients over these axes happens once a step, on float32 parts, and
  not for every block inside the scan.
  """
  return jax.tree.map(_vary, params)


def _vary(part: jax.Array, axes: Sequence[str] = mesh_lib.AXES) -> jax.Array:
  known = jax.typeof(part).manual_axis_type.varying
  missing = tuple(a for a in axes if a not in known)
  return jax.lax.pcast(part, missing, to='varying') if missing else part


def _axes(spec: P) -> tuple[str, ...]:
  """Axes of the mesh that rows are split over."""
  first = spec[0] if spec else None
  return (first,) if isinstance(first, str) else tuple(first or ())


def split_rows(rows: tree.Tree, num_chunks: int) -> tree.Tree:
  """[r, …] leaves to [num_chunks, r/num_chunks, …], without communication.

  Chunk i holds the i-th part of the rows of every device. Leaves may be split
  as ROWS or as `columns`.
  """
  def split_leaf(x):
    spec = jax.typeof(x).sharding.spec
    devices = _peers(spec)

    def local(x):
      x = x.reshape(devices, num_chunks, -1, *x.shape[1:])
      return jnp.swapaxes(x, 0, 1).reshape(num_chunks, -1, *x.shape[3:])

    return jax.shard_map(
        local, in_specs=spec, out_specs=P(None, *spec))(x)

  return jax.tree.map(split_leaf, rows)


def some_rows(x: jax.Array, unit: int, take: int, of: int) -> jax.Array:
  """The first `take` of every `of` units, which are `unit` rows each.

  Needs no communication: every device holds whole multiples of `of` units.
  """
  spec = jax.typeof(x).sharding.spec

  def local(x):
    parts = x.reshape(-1, of, unit, *x.shape[1:])[:, :take]
    return parts.reshape(-1, *x.shape[1:])

  return jax.shard_map(local, in_specs=spec, out_specs=spec)(x)


def merge_rows(chunks: tree.Tree) -> tree.Tree:
  """The inverse of `split_rows`."""
  def merge_leaf(x):
    spec = P(*jax.typeof(x).sharding.spec[1:])
    devices = _peers(spec)

    def local(x):
      x = x.reshape(x.shape[0], devices, -1, *x.shape[2:])
      return jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[3:])

    return jax.shard_map(
        local, in_specs=P(None, *spec), out_specs=spec)(x)

  return jax.tree.map(merge_leaf, chunks)


def _peers(spec: P) -> int:
  """Devices whose rows lie together on one: those of `fsdp`, or itself."""
  if spec[0] == mesh_lib.DATA:
    return jax.sharding.get_abstract_mesh().shape[mesh_lib.FSDP]
  return 1


def abstract_rows(rows: tree.Tree, mesh: jax.sharding.Mesh) -> tree.Tree:
  """Shapes of row-split arrays, to compile for before they exist."""
  place = jax.NamedSharding(mesh, ROWS)
  return jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), rows)


def constrain(x: jax.Array, spec: P = ROWS) -> jax.Array:
  """Moves `x` to `spec`: rows over all devices, or P() for everywhere."""
  return jax.sharding.reshard(x, P(*spec, *[None] * (x.ndim - len(spec))))


def everywhere(x: jax.Array) -> jax.Array:
  """An array whole on every device; itself where there is no mesh."""
  if jax.sharding.get_abstract_mesh().empty:
    return x
  return constrain(x, P())


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


def in_one_axis(x: jax.Array) -> jax.Array:
  """[n, d] of [r, …, d]; itself where another axis than the first is split.

  XLA's CPU compiler turns what a product reads to learn from several axes.
  """
  if not _fits_one_axis(x):
    return x
  return _shaped(x, x, (math.prod(x.shape[:-1]), x.shape[-1]))


def in_axes_of(rows: jax.Array, x: jax.Array) -> jax.Array:
  """[r, …, e] of what was made of `in_one_axis` of x [r, …, d]."""
  if not _fits_one_axis(x):
    return rows
  return _shaped(rows, x, (*x.shape[:-1], rows.shape[-1]))


def _fits_one_axis(x: jax.Array) -> bool:
  return x.ndim > 2 and not any(jax.typeof(x).sharding.spec[1:])


def _shaped(x: jax.Array, rows: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """x in a shape whose first axis is split as that of other rows."""
  place = jax.typeof(rows).sharding
  if place.spec[0] is None:
    return x.reshape(shape)
  # Its own mesh: arrays of a mesh may be used where none is set.
  return x.reshape(shape, out_sharding=place.update(
      spec=P(place.spec[0], *[None] * (len(shape) - 1))))


def as_rows_of(tree_: tree.Tree, rows: jax.Array) -> tree.Tree:
  """Arrays [r, …] split along their first axis as other rows are."""
  place = jax.typeof(rows).sharding
  if place.mesh.empty:
    return tree_
  place = place.update(spec=P(*place.spec[:1]))
  return jax.tree.map(lambda x: jax.sharding.reshard(x, place), tree_)


def by_rows(function: Callable[..., tree.Tree], *rows: tree.Tree,
            whole: tree.Tree = None, differentiable: bool = True) -> tree.Tree:
  """A function of rows that knows no others, on every device's own.

  Args:
    function: rows to rows, [r, …] each, wherever they lie; `whole` comes
      first, where it is given.
    *rows: trees of arrays that are split alike along their first axis, or not
      at all.
    whole: parameters that every device has whole.
    differentiable: False: nothing of it is differentiated, and what
      `shard_map` cannot follow (a search, a sort) may be inside.
  """
  given = () if whole is None else (whole,)
  # Arrays of a mesh may be used where none is set.
  is_set = not jax.sharding.get_abstract_mesh().empty
  mesh = jax.typeof(jax.tree.leaves(rows)[0]).sharding.mesh
  if not is_set and mesh.empty:
    return function(*given, *rows)
  specs = {jax.typeof(x).sharding.spec[:1] for x in jax.tree.leaves(rows)}
  spec = P(*specs.pop())
  if specs:
    raise ValueError(f'rows are split differently: {spec} and {specs}')

  def local(given, *rows):
    # Their gradients are added up over the devices once, and not inside.
    vary = functools.partial(_vary, axes=_axes(spec))
    return function(*jax.tree.map(vary, given), *rows)

  return jax.shard_map(
      local, in_specs=(P(), *[spec] * len(rows)), out_specs=spec,
      check_vma=differentiable, mesh=None if is_set else mesh)(given, *rows)
