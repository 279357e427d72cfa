"""Programs that run without dinojax: ONNX and StableHLO.

Both hold the backbone in float32, take normalised images of one size in a
batch of any size, and return `cls` [b, d], `registers` [b, n, d] (left out
when the model has none) and `patches` [b, p, d] after the final norm.
"""

from collections.abc import Callable, Sequence
import contextlib
import dataclasses
import importlib.util
import logging
import pathlib

from flax import nnx
import jax
from jax import export
import jax.numpy as jnp
import numpy as np

from dinojax.core import atomic
from dinojax.core import errors
from dinojax.core import tree
from dinojax.interop import files
from dinojax.interop import reading
from dinojax.models import convnext
from dinojax.models import vit
from dinojax.parallel import mesh as mesh_lib
from dinojax.parallel import sharding

ONNX, ONNX_DATA = 'model.onnx', 'model.onnx.data'
STABLEHLO, PARAMS = 'model.stablehlo', 'params.safetensors'
PLATFORMS = ('cpu', 'cuda', 'tpu')
_IMAGE_PX = 224
_CONVNEXT_PX = 32  # the stride of the last map
_OPSET = 18  # what PyTorch's exporter writes too: runtimes of 2023 read it
# A protocol buffer ends at 2 GiB; the graph itself needs little.
_ONE_FILE_BYTES = 2**31 - 2**26


def image_px(config: reading.Config, wanted: int | None = None) -> int:
  """The side of square images of a program.

  Args:
    config: configuration of the backbone.
    wanted: None takes 224, or the side of the learned positions where that
      is smaller, cut to whole patches.

  Raises:
    UserError: `wanted` is not whole patches.
  """
  unit, usual = _CONVNEXT_PX, _IMAGE_PX
  if isinstance(config, vit.ViTConfig):
    unit = config.patch_px
    if config.position == 'learned':
      usual = min(usual, config.image_px)
  side = usual if wanted is None else wanted
  whole = max(side // unit, 1) * unit
  if wanted not in (None, whole):
    raise errors.UserError(
        f'image_px={wanted} is not divisible by the patch of {unit}: set it '
        f'to {whole}')
  return whole


def plain(config: reading.Config) -> reading.Config:
  """The configuration with arithmetic that every platform has."""
  options = dict(dtype='float32', remat='none')
  if isinstance(config, vit.ViTConfig):
    options['attention'] = 'xla'
  return dataclasses.replace(config, **options)


def forward(config: reading.Config) -> Callable[[tree.Tree, jax.Array], dict]:
  """The function of parameters and [b, y, x, c] images, without a mesh."""
  config = plain(config)
  module = (vit.ViT if isinstance(config, vit.ViTConfig)
            else convnext.ConvNeXt)
  abstract = nnx.eval_shape(lambda: module(config, rngs=nnx.Rngs(0)))
  # Parameters on one device are whole, so nothing is gathered over a mesh.
  mesh = mesh_lib.make(devices=mesh_lib.one_device())
  graph, _ = nnx.split(sharding.annotate(abstract, mesh))

  def apply(params: tree.Tree, images: jax.Array) -> dict:
    out = nnx.merge(graph, params)({'global': images})['global']
    return {name: out[name] for name in outputs(config)}

  return apply


def outputs(config: reading.Config) -> list[str]:
  """Names of the outputs of a program, in order."""
  return ['cls', *['registers'] * bool(getattr(config, 'num_registers', 0)),
          'patches']


def write_stablehlo(place: pathlib.Path, weights: reading.Weights,
                    wanted_px: int | None = None) -> list[str]:
  """One program for CPU, CUDA and TPU, and its parameters beside it.

    program = jax.export.deserialize(open('model.stablehlo', 'rb').read())
    params = safetensors.numpy.load_file('params.safetensors')
    features = program.call(params, images)  # [b, y, x, c] float32

  The parameters are an argument: as constants they could not be more than
  2 GiB (a limit of the file format), would be compiled over and over, and
  could not be sharded or cast by who loads them.

  Args:
    place: an existing folder.
    weights: the backbone.
    wanted_px: see `image_px`.

  Returns:
    Sentences about what was written.
  """
  config, side = weights.config, image_px(weights.config, wanted_px)
  shapes, apply = reading.shapes(config), forward(config)

  def program(params: dict[str, jax.Array], images: jax.Array) -> dict:
    return apply(
        tree.map_with_name(lambda name, _: params[name], shapes), images)

  flat = {name: np.asarray(value)
          for name, value in tree.items(weights.params)}
  like = {name: jax.ShapeDtypeStruct(value.shape, value.dtype)
          for name, value in flat.items()}
  exported = export.export(jax.jit(program), platforms=PLATFORMS)(
      like, _images(side, side, config.num_channels))
  files.write_safetensors(str(place / PARAMS), flat)
  atomic.write_bytes(
      place / STABLEHLO, exported.serialize(vjp_order=0))
  return [f'program for {", ".join(PLATFORMS)} in {place / STABLEHLO}, '
          f'{len(flat)} parameters in {place / PARAMS}: '
          'jax.export.deserialize(…).call(params, images) takes images '
          f'[b, {side}, {side}, {config.num_channels}]']


def write_onnx(place: pathlib.Path, weights: reading.Weights,
               wanted_px: int | None = None) -> list[str]:
  """model.onnx, from `images` [batch, c, y, x] to the named outputs.

  Channels lead, as users of ONNX expect. Parameters are inside; above 2 GiB
  they lie in model.onnx.data, which has to stay beside it.

  Args:
    place: an existing folder.
    weights: the backbone.
    wanted_px: see `image_px`.

  Returns:
    Sentences about what was written.

  Raises:
    UserError: jax2onnx is missing, or cannot convert the model.
  """
  config, side = weights.config, image_px(weights.config, wanted_px)
  apply = forward(config)
  spec = _images(config.num_channels, side, side)
  names = outputs(config)

  def program(images: jax.Array) -> tuple:
    features = apply(
        weights.params, jnp.transpose(images, (0, 2, 3, 1)))
    return tuple(features[name] for name in names)

  flat = unroll(program, spec)
  model = _to_onnx(flat, spec, names)
  model.doc_string = (
      f'images [batch, {config.num_channels}, {side}, {side}], divided by '
      f'255 and normalised with mean {weights.mean} and deviation '
      f'{weights.std}; outputs after the final norm: {", ".join(names)}')
  data = _save_onnx(place, model, tree.num_elements(weights.params) * 4)
  return [f'{place / ONNX}{data}: images [batch, {config.num_channels}, '
          f'{side}, {side}] to {", ".join(names)}']


def unroll(function: Callable, spec: jax.ShapeDtypeStruct) -> Callable:
  """The function as plain operations on what depends on its argument.

  Loops are unrolled, and what follows from parameters alone (a layer's part
  of stacked weights, angles of RoPE, resampled positions) is computed now.
  jax2onnx, given the modules themselves, stops at the convolutions and writes
  shapes for RoPE that ONNX's checker refuses.
  """
  with jax.disable_jit():  # a scan is a Python loop then
    closed = jax.make_jaxpr(function)(spec)
  known = _known(closed)
  return lambda x: tuple(_evaluate(closed.jaxpr, known, (x,)))


def _known(closed) -> dict:
  """Values of variables that follow from parameters alone, by one program."""
  jaxpr = closed.jaxpr
  given = dict(zip(jaxpr.constvars, closed.consts, strict=True))
  known, equations, others = set(given), [], []
  for equation in jaxpr.eqns:
    if _has_sizes(equation) and all(
        _is_literal(var) or var in known for var in equation.invars):
      known.update(equation.outvars)
      equations.append(equation)
    else:
      others.append(equation)
  read = {var for equation in others for var in equation.invars
          if not _is_literal(var)} | {
              var for var in jaxpr.outvars if not _is_literal(var)}
  wanted = [var for equation in equations for var in equation.outvars
            if var in read]

  def compute(constants):
    values = dict(zip(jaxpr.constvars, constants, strict=True))
    _fill(values, equations)
    return [values[var] for var in wanted]

  return given | dict(zip(
      wanted, jax.jit(compute)(closed.consts), strict=True))


def _is_literal(var) -> bool:
  """Tells whether an operand is a literal, which carries its value."""
  return hasattr(var, 'val')


def _has_sizes(equation) -> bool:
  """Tells whether all sizes of the results are integers, none symbolic."""
  return all(isinstance(n, int)
             for var in equation.outvars for n in var.aval.shape)


def _evaluate(jaxpr, values: dict, arguments: Sequence) -> list:
  """Outputs of a program some of whose variables have values."""
  values = values | dict(zip(jaxpr.invars, arguments, strict=True))
  _fill(values, [equation for equation in jaxpr.eqns
                 if not all(var in values for var in equation.outvars)])
  return [_value(var, values) for var in jaxpr.outvars]


def _fill(values: dict, equations: Sequence):
  for equation in equations:
    outputs = _run(equation, [_value(var, values) for var in equation.invars])
    values |= zip(equation.outvars, outputs, strict=True)


def _value(var, values: dict):
  return var.val if _is_literal(var) else values[var]


def _run(equation, inputs: list) -> list:
  primitive, params = equation.primitive, equation.params
  if primitive.name == 'stop_gradient':
    return inputs
  if primitive.name == 'platform_index':  # what suits none in particular
    return [[names is None for names in params['platforms']].index(True)]
  if primitive.name == 'cond' and not isinstance(inputs[0], jax.core.Tracer):
    inner = params['branches'][int(inputs[0])]
    return _evaluate(inner.jaxpr, dict(zip(
        inner.jaxpr.constvars, inner.consts, strict=True)), inputs[1:])
  if primitive.name == 'custom_vjp_call':
    inner = params['call_jaxpr']
    return _evaluate(inner.jaxpr, dict(zip(
        inner.jaxpr.constvars, inner.consts, strict=True)), inputs)
  if _has_sizes(equation) and not any(
      isinstance(x, jax.core.Tracer) for x in inputs):
    with jax.ensure_compile_time_eval():  # within a function with a gradient
      out = primitive.bind(*inputs, **params)
  elif primitive.name == 'dot_general' and _is_linear(params, inputs):
    out = jnp.matmul(*inputs)  # becomes a MatMul; other products, an Einsum
  else:
    out = primitive.bind(*inputs, **params)
  return list(out) if primitive.multiple_results else [out]


def _is_linear(params: dict, inputs: list) -> bool:
  """Tells whether a product is [..., d] @ [d, e]."""
  return inputs[1].ndim == 2 and params['dimension_numbers'] == (
      ((inputs[0].ndim - 1,), (0,)), ((), ()))


def check(config: reading.Config, kind: str):
  """Refuses a program that could not be written, whatever the weights are.

  Raises:
    UserError: what writes it is not installed, or no size of images fits.
  """
  image_px(config)
  missing = [name for name in ('jax2onnx', 'onnx')
             if kind == 'onnx' and not importlib.util.find_spec(name)]
  if missing:
    raise errors.UserError(
        f'onnx needs {" and ".join(missing)}: pip install "dinojax[onnx]", or '
        'use stablehlo')


def _to_onnx(function: Callable, spec: jax.ShapeDtypeStruct,
             names: list[str]):
  """The onnx_ir model of a function of images."""
  try:
    import jax2onnx
  except ImportError as error:
    raise errors.UserError(
        f'--format=onnx needs jax2onnx ({error}): '
        'pip install "dinojax[onnx]", or use --format=stablehlo') from error
  with _quiet('jax2onnx'), _quiet('onnx_ir'):
    try:
      return jax2onnx.to_onnx(
          function, [spec], model_name='dinojax', opset=_OPSET,
          return_mode='ir', input_names=['images'], output_names=names)
    except Exception as error:  # of any kind: it is a compiler
      first = next(iter(str(error).splitlines()), '')
      raise errors.UserError(
          f'jax2onnx cannot convert this model with jax {jax.__version__} '
          f'({type(error).__name__}: {first}): use --format=stablehlo, or the '
          'versions that pyproject.toml names') from error


def _save_onnx(place: pathlib.Path, model, num_bytes: int) -> str:
  """Writes a model; says where its parameters went if not inside."""
  import onnx_ir
  (place / ONNX_DATA).unlink(missing_ok=True)
  with _quiet('onnx_ir'):
    if num_bytes <= _ONE_FILE_BYTES:
      onnx_ir.save(model, place / ONNX)
      return ''
    onnx_ir.save(model, place / ONNX, external_data=ONNX_DATA)
  return f' and {ONNX_DATA}, which has to stay beside it'


@contextlib.contextmanager
def _quiet(name: str):
  """Errors only: of the converters of packages that we do not use."""
  logger = logging.getLogger(name)
  level = logger.level
  logger.setLevel(logging.ERROR)
  try:
    yield
  finally:
    logger.setLevel(level)


def _images(*shape: int) -> jax.ShapeDtypeStruct:
  batch, = export.symbolic_shape('batch')
  return jax.ShapeDtypeStruct((batch, *shape), np.float32)
