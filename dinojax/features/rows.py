"""Columns of every readable image, kept in shards while they are made.

A stopped extraction goes on after its last whole shard, on any number of
processes, which share the folder. Protocols that read the same features read
the same shards.
"""

from collections.abc import Callable, Mapping
import dataclasses
import hashlib
import io
import json

from etils import epath
import numpy as np

from dinojax.core import atomic
from dinojax.data import identity
from dinojax.data import record as record_lib
from dinojax.features import backbone as backbone_lib
from dinojax.features import preprocessing as preprocessing_lib
from dinojax.features import spec as spec_lib
from dinojax.features import stream
from dinojax.parallel import processes

_ROWS_PER_SHARD = 4096
Columns = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Extraction:
  """Everything that the columns depend on.

  Attributes:
    model: the backbone.
    weights: digest of the model, see store.digest.
    source: records.
    specs: features by name.
    preprocessing: sizes of the images.
    reading: how images are read.
    reduce: makes arrays of what spec.compute gives, see Backbone.run; its text
      is part of the name of the shards.
  """

  model: backbone_lib.Backbone
  weights: str
  source: record_lib.Source
  specs: Mapping[str, spec_lib.FeatureSpec]
  preprocessing: preprocessing_lib.Preprocessing
  reading: stream.Reading
  reduce: Callable[[dict], dict]

  def key(self) -> str:
    """Digest of all that changes the columns, but for rounding."""
    function = self.reduce
    settings = {
        'model': self.weights, 'mean': self.model.mean, 'std': self.model.std,
        'source': self.source.spec, 'images': len(self.source),
        'data': identity.digest(identity.lines(self.source, sizes=True)),
        'specs': [[name, dataclasses.asdict(spec)]
                  for name, spec in self.specs.items()],
        'px': dataclasses.asdict(self.preprocessing),
        'max_pixels': self.reading.max_pixels,
        'value_range': list(self.reading.value_range),
        'reduce': repr(function) if dataclasses.is_dataclass(function) else
                  f'{function.__module__}.{function.__qualname__}'}
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def table(job: Extraction, columns: Callable[[stream.Batch], Columns], *,
          folder: epath.Path | None = None,
          progress: Callable[[int], None] = lambda count: None,
          rows_per_shard: int = _ROWS_PER_SHARD) -> Columns:
  """Columns of all readable records, on every process, in data order.

  Args:
    job: the extraction.
    columns: arrays of a batch with its rows leading.
    folder: keeps the shards; every process reads it. None: nothing is kept.
    progress: called with the number of images since the last call.
    rows_per_shard: records of a shard.

  Returns:
    The columns, and `index` and `label` of each row.
  """
  shards = [] if folder is None else _held(
      folder / job.key(), len(job.source), rows_per_shard)
  done = min(len(shards) * rows_per_shard, len(job.source))
  progress(done)
  waiting: list[Columns] = []
  batches = stream.read(
      job.model, job.specs, job.source, job.preprocessing, job.reading,
      indices=range(done, len(job.source)), section_rows=rows_per_shard,
      reduce=job.reduce)
  for batch in batches:
    waiting.append(stream.of_batch(batch, columns))
    progress(len(batch.rows) + len(batch.bad))
    if batch.ends_section:
      shard = stream.together(job.model.mesh, waiting)
      if folder is not None and processes.is_first():
        _keep(_path(folder / job.key(), len(shards)), shard)
      shards.append(shard)
      waiting = []
  return {name: np.concatenate([shard[name] for shard in shards])
          for name in shards[0]}


def blank(job: Extraction) -> Columns:
  """Columns as of `table`, all zero: for planning, without weights.

  Rows share their memory.
  """
  count = len(job.source)
  shapes = job.model.shapes(
      (*job.preprocessing.shape, 3), job.specs, reduce=job.reduce)
  rows = lambda shape, dtype: np.broadcast_to(
      np.zeros((), dtype), (count, *shape))
  return {'index': np.arange(count), 'label': rows((), np.int64)} | {
      name: rows(x.shape[1:], np.float32) for name, x in shapes.items()}


def _path(folder: epath.Path, number: int) -> epath.Path:
  return folder / f'rows-{number:06d}.npz'


def _held(folder: epath.Path, count: int, rows_per_shard: int
          ) -> list[Columns]:
  """The whole shards that an earlier start left, from the first on."""
  most = -(-count // rows_per_shard)
  number = 0
  while number < most and _path(folder, number).exists():
    number += 1
  # All processes go on from where the first one sees them to end.
  number = int(processes.of_first(str(number)))
  return [_read(_path(folder, i)) for i in range(number)]


def _keep(path: epath.Path, shard: Columns):
  path.parent.mkdir(parents=True, exist_ok=True)
  packed = io.BytesIO()
  np.savez(packed, **shard)
  atomic.write_bytes(path, packed.getvalue())


def _read(path: epath.Path) -> Columns:
  with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as shard:
    return dict(shard)
