"""Memory of a program before it is compiled: a walk over its equations.

What is written to memory, and how long it stays there, follows from the shapes
of a jaxpr and a few rules of what compilers join: arithmetic on elements is
not stored until a matrix product, a loop or a kernel reads it.
"""

from collections.abc import Iterable, Sequence
import math
from typing import Any

from jax.extend import core

# The bytes of their argument, by another shape or name.
_SAME = frozenset(
    'reshape squeeze expand_dims stop_gradient pvary pcast reshard name copy '
    'sharding_constraint optimization_barrier bitcast_convert_type mesh_cast '
    'psum psum_invariant'.split())
# Computed where they are read, as long as only elements are.
_JOINED = frozenset(
    'abs acos acosh add add_any and asin asinh atan atan2 atanh '
    'broadcast_in_dim cbrt ceil clamp concatenate convert_element_type cos '
    'cosh digamma div dynamic_slice eq erf erf_inv erfc exp exp2 expm1 floor '
    'ge gt imag integer_pow iota is_finite le lgamma log log1p logistic lt '
    'max min mul ne neg nextafter not or pad pow population_count real '
    'reduce_precision rem rev round rsqrt select_n shift_left '
    'shift_right_arithmetic shift_right_logical sign sin sinh slice split '
    'sqrt square stack sub tan tanh transpose xor'.split())
# Sums and extremes: they read elements, and store their results.
_REDUCING = ('reduce_', 'argmax', 'argmin')
# They write into what they are given where nothing reads that later.
_IN_PLACE = ('scatter', 'dynamic_update_slice')
_CALLED = ('jaxpr', 'call_jaxpr', 'fun_jaxpr')  # where calls keep their body


def temporaries(program: core.ClosedJaxpr) -> int:
  """The most bytes of one device that a program holds beside its arguments.

  Results are taken to be written over arguments that are given away, as a
  state is.

  Args:
    program: as traced, with arrays on an explicit mesh.
  """
  walk = _Walk()
  given = (*program.jaxpr.constvars, *program.jaxpr.invars)
  walk.run(program.jaxpr, [walk.hold(_Value(0, ())) for _ in given])
  return walk.peak


def size_of(aval: Any) -> int:
  """Bytes of an array on one device; 0 of what the host's memory holds."""
  itemsize = getattr(getattr(aval, 'dtype', None), 'itemsize', 0)
  if 'Host' in str(getattr(aval, 'memory_space', '')) or not itemsize:
    return 0
  sharding, parts = getattr(aval, 'sharding', None), 1
  if sharding is not None and not sharding.mesh.empty:
    # Inside shard_map shapes are a device's own, and no axis is named.
    parts = math.prod(sharding.mesh.shape[name] for axes in sharding.spec
                      for name in _names(axes))
  return math.prod(aval.shape) * itemsize // parts


def _names(axes: str | tuple | None) -> tuple:
  return axes if isinstance(axes, tuple) else (axes,) if axes else ()


class _Buffer:
  """Bytes in memory, and the number of values that need them."""

  def __init__(self, size: int):
    self.size, self.users = size, 0


class _Value:
  """Value of a variable, and the memory that it needs.

  Attributes:
    size: bytes that it takes where it is stored.
    buffers: its own where it is stored, else all that it is computed from;
      arguments of the program have none.
    is_stored: True if it can be read without being written first.
    readers: number of references to it.
  """

  def __init__(self, size: int, buffers: Iterable[_Buffer],
               is_stored: bool = True):
    self.size, self.is_stored, self.readers = size, is_stored, 0
    self.buffers = list(dict.fromkeys(buffers))
    for buffer in self.buffers:
      buffer.users += 1


class _Walk:
  """One pass over a program, with the bytes held and the most there were."""

  def __init__(self):
    self.held = self.peak = 0

  def run(self, jaxpr: core.Jaxpr, arguments: Sequence[_Value]
          ) -> list[_Value]:
    """Walks over the equations.

    Args:
      jaxpr: the equations.
      arguments: held once for this call, which lets go of them.

    Returns:
      The results, held once for the caller.
    """
    env = dict(zip((*jaxpr.constvars, *jaxpr.invars), arguments, strict=True))
    last = _last_uses(jaxpr)
    for var in [v for v in env if v not in last]:
      self.release(env.pop(var))
    for index, eqn in enumerate(jaxpr.eqns):
      dying = [v for v in _variables(eqn.invars) if last[v] == index]
      results = self._equation(eqn, env, dying)
      for var in dying:
        if var in env:
          self.release(env.pop(var))
      for var, value in zip(eqn.outvars, results, strict=True):
        if var in last:
          env[var] = value
        else:
          self.release(value)
    out = [self.hold(env[x] if isinstance(x, core.Var) else _Value(0, ()))
           for x in jaxpr.outvars]
    for value in env.values():
      self.release(value)
    return out

  def hold(self, value: _Value) -> _Value:
    """The value, with a reader more."""
    value.readers += 1
    return value

  def release(self, value: _Value):
    """A reader less; what nobody reads is freed."""
    value.readers -= 1
    if not value.readers:
      self._let_go(value)

  def _let_go(self, value: _Value):
    for buffer in value.buffers:
      buffer.users -= 1
      if not buffer.users:
        self.held -= buffer.size
    value.buffers = []

  def _store(self, size: int) -> _Value:
    """A new value in memory of its own, held once."""
    self.held += size
    self.peak = max(self.peak, self.held)
    return self.hold(_Value(size, [_Buffer(size)]))

  def _written(self, value: _Value):
    """Stores a value for a reader that needs the whole array."""
    if value.is_stored:
      return
    value.is_stored = True
    for buffer in value.buffers:
      if buffer.size == value.size and buffer.users == 1:
        break  # it is written over what it is computed from
    else:
      self.held += value.size
      self.peak = max(self.peak, self.held)
      buffer = _Buffer(value.size)
      buffer.users = 1
      value.buffers.append(buffer)
    others = [b for b in value.buffers if b is not buffer]
    value.buffers = others
    self._let_go(value)
    value.buffers = [buffer]

  def _equation(self, eqn: core.JaxprEqn, env: dict, dying: list
                ) -> list[_Value]:
    """The results of an equation, each held once."""
    name = eqn.primitive.name
    inputs = [env[x] if isinstance(x, core.Var) else _Value(0, ())
              for x in eqn.invars]
    sizes = [size_of(x.aval) for x in eqn.outvars]
    if name == 'scan':
      return self._scan(eqn, inputs, env, dying, sizes)
    if name == 'while':
      return self._while(eqn, inputs, env, dying, sizes)
    if name == 'cond':
      return self._cond(eqn, inputs, sizes)
    inside = [eqn.params[x] for x in _CALLED if x in eqn.params]
    if inside and name != 'pallas_call':
      return self._call(inside[0], inputs, env, dying)
    if name in _SAME and len(inputs) == len(sizes):
      return [self.hold(x) for x in inputs]
    if name in _JOINED:
      return self._joined(inputs, env, dying, sizes)
    if not name.startswith(_REDUCING):
      for value in inputs:
        self._written(value)
    if name.startswith(_IN_PLACE) and self._dies(inputs[0], env, dying):
      return [self.hold(inputs[0])]
    return [self._store(size) for size in sizes]

  def _joined(self, inputs: list, env: dict, dying: list,
              sizes: list) -> list[_Value]:
    """Arithmetic on elements: stored only where that frees more."""
    buffers = [b for x in inputs for b in x.buffers]
    out = [self.hold(_Value(size, buffers, is_stored=not size))
           for size in sizes]
    ends = {id(env[v]): env[v] for v in dying}
    freed = sum(
        b.size for b in dict.fromkeys(buffers)
        if b.users - len(out) == sum(
            b in x.buffers and x.readers == _count(env, dying, x)
            for x in ends.values()))
    if freed > sum(sizes):
      for var in dying:
        self.release(env.pop(var))
      for value in out:
        self._written(value)
    return out

  def _dies(self, value: _Value, env: dict, dying: list) -> bool:
    """Tells whether nothing reads a stored value after this equation."""
    return (value.size > 0 and len(value.buffers) == 1
            and value.buffers[0].users == 1
            and value.readers == _count(env, dying, value))

  def _call(self, body: Any, inputs: list, env: dict,
            dying: list) -> list[_Value]:
    """A body that is run as if it stood here."""
    arguments = [self.hold(x) for x in inputs]
    for var in dying:
      self.release(env.pop(var))
    return self._body(body, arguments)

  def _body(self, body: Any, arguments: list) -> list[_Value]:
    jaxpr = getattr(body, 'jaxpr', body)
    constants = [self.hold(_Value(0, ())) for _ in jaxpr.constvars]
    return self.run(jaxpr, [*constants, *arguments])

  def _scan(self, eqn, inputs, env, dying, sizes) -> list[_Value]:
    """A loop over stacked arrays, whose results are there all the while."""
    consts, carries = _scan_counts(eqn.params)
    for value in inputs:
      self._written(value)
    carried = self._carried(inputs[consts:consts + carries], env, dying)
    stacks = [self._store(size) for size in sizes[carries:]]
    slices = [_Value(x.size // max(eqn.params['length'], 1), x.buffers,
                     is_stored=False) for x in inputs[consts + carries:]]
    self._once(eqn.params['jaxpr'], [*inputs[:consts], *carried, *slices])
    return [*carried, *stacks]

  def _while(self, eqn, inputs, env, dying, sizes) -> list[_Value]:
    """A loop of unknown length."""
    del sizes
    test, body = (eqn.params[f'{x}_nconsts'] for x in ('cond', 'body'))
    for value in inputs:
      self._written(value)
    carried = self._carried(inputs[test + body:], env, dying)
    self._once(eqn.params['body_jaxpr'],
               [*inputs[test:test + body], *carried])
    return carried

  def _cond(self, eqn, inputs, sizes) -> list[_Value]:
    """The dearest of the branches."""
    for value in inputs:
      self._written(value)
    out = [self._store(size) for size in sizes]
    for branch in eqn.params['branches']:
      self._once(branch, inputs[1:])
    return out

  def _carried(self, inputs: list, env: dict, dying: list) -> list[_Value]:
    """Initial values of a loop; those that are read after it are copied."""
    return [self.hold(x) if self._dies(x, env, dying) or not x.size
            else self._store(x.size) for x in inputs]

  def _once(self, body: Any, arguments: list):
    """One turn of a body; nothing that it is given is freed."""
    kept = [self.hold(x) for x in arguments]
    for value in self._body(body, [self.hold(x) for x in arguments]):
      self.release(value)
    for value in kept:
      self.release(value)


def _count(env: dict, variables: Iterable, value: _Value) -> int:
  return sum(env.get(v) is value for v in variables)


def _variables(atoms: Iterable) -> list:
  return list(dict.fromkeys(x for x in atoms if isinstance(x, core.Var)))


def _last_uses(jaxpr: core.Jaxpr) -> dict:
  """The equation that reads a variable last; beyond all of them a result."""
  out = {}
  for index, eqn in enumerate(jaxpr.eqns):
    out |= dict.fromkeys(_variables(eqn.invars), index)
  return out | dict.fromkeys(_variables(jaxpr.outvars), len(jaxpr.eqns))


def _scan_counts(params: dict) -> tuple[int, int]:
  """Constants and carried arrays of a scan; jax 0.11.1 renamed the entries."""
  if 'num_consts' in params:
    return params['num_consts'], params['num_carry']
  consts, carries, _ = params['ft_in'].unpack()
  return len(consts), len(carries)
