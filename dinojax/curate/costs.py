"""Costs of a recipe for a pool of a size: FLOPs, bytes, hours, disk, memory.

Nothing is run. The arithmetic is that of the stages: `tests` compare its bytes
with what they write. Every assumption is a value of the section `plan`, and is
told with the numbers.
"""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import math

from dinojax.curate import assumptions
from dinojax.curate import hierarchy
from dinojax.curate import machines
from dinojax.curate import neighbors
from dinojax.curate import recipe
from dinojax.curate.stages import describe
from dinojax.curate.stages import retrieve
from dinojax.models import families
from dinojax.models import zoo

# Seconds of a core, measured by bench/curation.py: an image, and each of its
# megapixels, opened, measured and hashed.
_LOOK_S, _LOOK_S_PER_MPX = 0.7e-3, 18e-3
_PDQ_S, _ONNX_S, _ROW_S = 8e-3, 63e-3, 3e-6
_ROW_BYTES, _THUMBNAIL_BYTES, _VERDICT_BYTES = 200, 2048, 4
_EDGE_BYTES, _EDGES = 16, 0.5  # edges of an image
_SSCD_WIDTH, _SSCD_FLOPS_PER_PX = 512, 2 * 4.09e9 / 224**2
_POWERS = ('', 'k', 'M', 'G', 'T', 'P', 'E', 'Z', 'Y')
_PARALLEL_PASSES = 10  # of a k-means, in the time that k-means‖ takes


@dataclasses.dataclass(frozen=True)
class Cost:
  """A part of a stage.

  Attributes:
    stage, what: names.
    images: images that it is about.
    flops: FLOPs; float32: of float32 products, not bfloat16; on_cores: of
      faiss, on processors.
    alone: True where a single machine does it.
    core_s: seconds of a core.
    read, written: bytes; what is written stays until it is deleted.
    memory: bytes in the memory of one process.
    note: a part that is not counted, in words.
  """

  stage: str
  what: str
  images: float
  flops: float = 0.0
  float32: bool = False
  on_cores: bool = False
  alone: bool = False
  core_s: float = 0.0
  read: float = 0.0
  written: float = 0.0
  memory: float = 0.0
  note: str = ''

  def hours(self, machine: machines.Machine,
            settings: assumptions.Settings) -> float:
    """The longest of computing, cores and disk, which work side by side."""
    cores = machine.cores / (machine.hosts if self.alone else 1)
    speed = cores * machines.CPU_FLOPS if self.on_cores else machine.flops(
        settings, float32=self.float32, alone=self.alone)
    return max(
        self.flops / speed, self.core_s / cores,
        (self.read + self.written) / (settings.disk_gb_s * 1e9)) / 3600


def of_recipe(settings: recipe.Settings, assumed: assumptions.Settings,
              count: float) -> list[Cost]:
  """Costs of all stages of a recipe, for so many images.

  Args:
    settings: the recipe.
    assumed: its section `plan`.
    count: images of the pool.

  Raises:
    UserError: an architecture that is not known.
  """
  out, left, widths = [], float(count), {}
  for name in settings.stages:
    config = getattr(settings, name)
    made = list(_STAGES[name](_Asked(
        name, config, settings, assumed, float(count), left, widths)))
    out += made
    if name in _DROP:
      left *= assumed.kept
  return out


@dataclasses.dataclass(frozen=True)
class _Asked:
  """A stage whose costs are asked for."""

  name: str
  config: object
  recipe: recipe.Settings
  assumed: assumptions.Settings
  pool: float  # rows
  left: float  # images that are alive
  widths: dict[str, int]  # of the vectors of stages before, by stage

  @property
  def width(self) -> int:
    """Length of the vectors that the stage reads."""
    order = (('describe', 'embed') if self.name in ('dedup', 'decontaminate')
             else ('embed', 'describe'))
    return next(self.widths[name] for name in order if name in self.widths)

  @property
  def bytes(self) -> float:
    """Encoded bytes of the images that are left."""
    return self.left * self.assumed.image_kb * 1e3

  @property
  def look_s(self) -> float:
    """Seconds of a core in which the images are decoded."""
    return self.left * (_LOOK_S + _LOOK_S_PER_MPX * self.assumed.image_mpx)

  def cost(self, what: str, **values) -> Cost:
    """A cost of this stage."""
    return Cost(self.name, what, values.pop('images', self.left), **values)


def _urls(ask: _Asked) -> Iterator[Cost]:
  yield ask.cost('pages', note='the pages are not counted')


def _ingest(ask: _Asked) -> Iterator[Cost]:
  yield ask.cost(
      'decode, measure', core_s=ask.look_s, read=ask.bytes,
      written=ask.left * (_ROW_BYTES + _THUMBNAIL_BYTES))


def _filter(ask: _Asked) -> Iterator[Cost]:
  judges = [key for key in ('nsfw', 'faces') if getattr(ask.config, key)]
  yield ask.cost(
      'verdicts', core_s=ask.left * _ROW_S + (ask.look_s if judges else 0),
      read=ask.left * _ROW_BYTES + (ask.bytes if judges else 0),
      written=ask.pool * _VERDICT_BYTES,
      note=f'the judges {" and ".join(judges)} are not counted' * bool(judges))


def _hash(ask: _Asked) -> Iterator[Cost]:
  is_pdq = ask.config.kind == 'pdq'
  bits = 256 if is_pdq else ask.config.bits
  keys = 1 + bits // 16
  written = ask.left * keys * (17 + max(bits // 8, 16))
  yield ask.cost(
      'keys, buckets', core_s=ask.left * keys * _ROW_S + (
          ask.look_s + ask.left * _PDQ_S if is_pdq else 0),
      read=written + ask.left * _THUMBNAIL_BYTES + ask.bytes * is_pdq,
      written=written)
  yield _join(ask)


def _join(ask: _Asked) -> Cost:
  """Labels of all rows, in the memory of one process."""
  each = 4 if ask.pool < 2**31 else 8
  return ask.cost('join', alone=True, core_s=ask.pool * 2e-7,
                  memory=ask.pool * (3 * each + 9),
                  written=ask.pool * (each + 1 + 2 * _VERDICT_BYTES))


def _describe(ask: _Asked) -> Iterator[Cost]:
  c, kind = ask.config, ask.config.descriptor.partition(':')[0]
  flops, core_s = 0.0, ask.look_s
  if kind == 'pixels':
    width = 3 * int(c.descriptor.partition(':')[2]) ** 2
  elif kind == 'model':
    config = _architecture(c, ask.assumed)
    width, flops = config.layer_dims[-1], config.flops(c.crop_px)
  else:
    width, side = _SSCD_WIDTH, int((c.resize or 'square:320').split(':')[1])
    flops = _SSCD_FLOPS_PER_PX * side**2 if kind == 'sscd' else 0.0
    core_s += ask.left * _ONNX_S * (kind == 'onnx')
  ask.widths[ask.name] = width
  yield ask.cost(c.descriptor, flops=ask.left * flops, core_s=core_s,
                 read=ask.bytes, written=ask.left * (2 * width + 8))


def _architecture(config: describe.Settings, assumed: assumptions.Settings
                  ) -> families.Config:
  """The network of a `model:`, by its published name or as it is assumed."""
  name = config.descriptor.partition(':')[2]
  return zoo.config(name if name in zoo.published() else assumed.architecture)


def _dedup(ask: _Asked) -> Iterator[Cost]:
  n, d, c = ask.left, ask.width, ask.config
  inverted = c.search == 'inverted' or (
      c.search == 'auto' and n > neighbors.EXACT_BELOW)
  edges = n * _EDGES * _EDGE_BYTES
  if inverted:
    lists = neighbors.lists_of(int(n))
    trained = neighbors.trained_on(int(n))
    yield ask.cost(
        f'index of {lists:,} lists', alone=True, on_cores=True,
        flops=2 * (trained * 10 + n) * lists * d, read=n * 2 * d,
        written=n * (2 * d + 8), memory=n * (2 * d + 8) + trained * 4 * d)
    yield ask.cost(
        f'{c.probes} lists of each', on_cores=True, read=n * 2 * d,
        flops=2 * n * d * (lists + c.probes * n / lists), written=edges)
  else:
    # Every shard of queries goes through all vectors.
    passes = max(n / ask.recipe.ingest.rows_per_shard, 1)
    yield ask.cost('all pairs', float32=True, flops=2 * n * n * d,
                   read=passes * n * 2 * d, written=edges)
  yield _join(ask)


def _decontaminate(ask: _Asked) -> Iterator[Cost]:
  a = ask.assumed
  yield ask.cost(
      'nearest references', on_cores=True,
      flops=2 * ask.left * a.references * ask.width,
      read=ask.left * 2 * ask.width, written=ask.pool * 20,
      memory=a.references * 6.0 * ask.width)
  yield _join(ask)


def _levels(ask: _Asked) -> list[int]:
  c = ask.config
  return list(c.levels or hierarchy.auto_levels(int(ask.left)))


def _cluster(ask: _Asked) -> Iterator[Cost]:
  c, d, n = ask.config, ask.width, ask.left
  resamples = c.resamples or (0,) * 8
  points = c.points or (2,) * 8
  for number, k in enumerate(_levels(ask)):
    split = c.split if number == 0 and c.split > 1 else 1
    yield _kmeans(ask, f'level {number + 1}: {k:,}' + (
        f', of {k // split:,}' if split > 1 else ''), n, k // split)
    if split > 1:
      yield ask.cost(
          f'level 1: each in {split}', images=n, core_s=(
              2 * n * split * d * c.iterations / machines.CPU_FLOPS),
          read=2 * n * 2 * d, written=n * (2 * d + 12) + k * 4 * d)
    if resamples[number]:
      yield _kmeans(ask, f'level {number + 1}: {resamples[number]} times again',
                    points[number] * k, k, resamples[number])
    n = float(k)
  yield ask.cost('assignment', core_s=ask.left * _ROW_S,
                 written=ask.left * (12 + 4 * len(_levels(ask))),
                 memory=ask.left * 12)


def _kmeans(ask: _Asked, what: str, rows: float, k: int, times: int = 1
            ) -> Cost:
  """Cost of k-means, which one machine does."""
  passes = ask.config.iterations + 2 + _PARALLEL_PASSES
  return ask.cost(
      what, images=rows, alone=True, float32=True,
      flops=2.0 * times * passes * rows * k * ask.width,
      read=times * passes * rows * 2 * ask.width, memory=k * 16.0 * ask.width,
      written=rows * 8 + k * 4 * ask.width)


def _sample(ask: _Asked) -> Iterator[Cost]:
  drawn = ask.config.images or ask.left / 2
  yield ask.cost('draws', images=drawn, alone=True, core_s=ask.left * 1e-6,
                 written=drawn * 20, memory=ask.left * 40)


def _retrieve(ask: _Asked) -> Iterator[Cost]:
  c, a, n, d = ask.config, ask.assumed, ask.left, ask.width
  share = lambda sets: a.queries * bool(sets) / (
      bool(c.samples) + bool(c.clusters))
  if c.samples:
    passes = -(-share(c.samples) // retrieve.BLOCK)
    yield ask.cost('nearest of every query', float32=True,
                   flops=2 * share(c.samples) * n * d,
                   read=passes * n * 2 * d, written=share(c.samples) * 12 * 32,
                   memory=retrieve.BLOCK * 4.0 * d)
  if c.clusters:
    yield _kmeans(ask, f'{c.num_clusters:,} clusters', n, c.num_clusters)


def _materialize(ask: _Asked) -> Iterator[Cost]:
  sampled = 'sample' in ask.recipe.stages
  chosen = (ask.recipe.sample.images or ask.left / 2) if sampled else ask.left
  bytes_ = chosen * ask.assumed.image_kb * 1e3
  yield ask.cost('records', images=chosen, core_s=chosen * 1e-4, read=bytes_,
                 written=bytes_ + chosen * 60)


_STAGES: dict[str, Callable[[_Asked], Iterator[Cost]]] = {
    'urls': _urls, 'ingest': _ingest, 'filter': _filter, 'hash': _hash,
    'describe': _describe, 'embed': _describe, 'dedup': _dedup,
    'decontaminate': _decontaminate, 'cluster': _cluster, 'sample': _sample,
    'retrieve': _retrieve, 'materialize': _materialize}
_DROP = ('filter', 'hash', 'dedup', 'decontaminate')


def table(costs: Sequence[Cost], machine: machines.Machine,
          settings: assumptions.Settings) -> list[str]:
  """Lines of text: a line for every part, sums, and what is assumed."""
  lines = [f'{"stage":14}{"part":30}{"images":>9}{"FLOPs":>9}'
           f'{"core hours":>11}{"read":>9}{"written":>9}{"memory":>9}'
           f'{"hours":>9}']
  hours = 0.0
  for cost in costs:
    took = cost.hours(machine, settings)
    hours += took
    lines.append(
        f'{cost.stage:14}{cost.what[:29]:30}{_short(cost.images):>9}'
        f'{_short(cost.flops):>9}{_short(cost.core_s / 3600):>11}'
        f'{_short(cost.read):>9}{_short(cost.written):>9}'
        f'{_short(cost.memory):>9}{took:9.3g}'
        + (f'  {cost.note}' if cost.note else ''))
  sums = [sum(getattr(cost, key) for cost in costs)
          for key in ('flops', 'core_s', 'read', 'written')]
  most = max(cost.memory for cost in costs)
  lines.append(
      f'{"all":53}{_short(sums[0]):>9}{_short(sums[1] / 3600):>11}'
      f'{_short(sums[2]):>9}{_short(sums[3]):>9}{_short(most):>9}{hours:9.3g}')
  slowest = max(costs, key=lambda cost: cost.hours(machine, settings))
  share = 100 * slowest.hours(machine, settings) / max(hours, 1e-12)
  lines.append(
      f'{share:.0f} % of the hours: {slowest.stage}, {slowest.what}'
      + (', which one machine does' if slowest.alone else ''))
  return lines


def _short(value: float) -> str:
  """Three digits and a power of a thousand."""
  if not value:
    return '-'
  power = min(max(int(math.log10(max(value, 1e-9)) // 3), 0), 8)
  return f'{value / 1000 ** power:.3g}{_POWERS[power]}'
