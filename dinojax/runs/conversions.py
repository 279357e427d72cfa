"""Images to records, weights in and weights out."""

import jax
import numpy as np
from rich import progress

from dinojax.core import text
from dinojax.core import tree
from dinojax.data import records
from dinojax.data import sources
from dinojax.evals import published_eomt
from dinojax.evals import stored_heads
from dinojax.features import backbone as backbone_lib
from dinojax.features import spec
from dinojax.interop import checking
from dinojax.interop import graphs
from dinojax.interop import reading
from dinojax.interop import store
from dinojax.interop import writing
from dinojax.parallel import mesh as mesh_lib
from dinojax.runs import models as models_lib

HEAD = 'head'  # folder of a head beside an imported backbone


def to_records(spec: str, out: str, *, images_per_shard: int):
  """Writes ArrayRecord shards; the same call continues."""
  source = sources.open_source(spec)
  shards = max(1, round(len(source) / images_per_shard))
  with progress.Progress(
      *progress.Progress.get_default_columns(),
      progress.MofNCompleteColumn()) as bar:
    task = bar.add_task('records', total=len(source))
    written = records.write(
        source, out, num_shards=shards,
        progress=lambda done, _: bar.update(task, completed=done))
  print(f'{len(source)} images in {len(written)} shards: '
        f'--config.data.train="arrayrecord:{out}/*.arrayrecord"')


def bring_in(path: str, out: str, *, base: str = '', **options):
  """Reads weights of another library into a folder of ours.

  Args:
    path: see models.read.
    out: folder to write.
    base: weights to which an EoMT of its authors is added; its head is then
      written beside the backbone.
    **options: see models.read; with `base`, of that.

  Raises:
    UserError: see models.read and published_eomt.whole.
  """
  weights, head = models_lib.read(base or path, **options), None
  if base:
    weights, head = published_eomt.whole(path, weights)
  store.save(out, weights)
  if head is not None:
    stored_heads.save(f'{out}/{HEAD}', head)
    print(f'what it predicts in {out}/{HEAD}: '
          f'`dinojax predict --model={out} --head={out}/{HEAD}`')
  size = tree.num_elements(weights.params) / 1e6
  heads = ' and '.join(['', *weights.heads])
  print(f'{size:.3g} M parameters{heads} ({weights.family}) in {out}: '
        f'dinojax.load({out!r})')


def take_out(path: str, out: str, *, format: str, part: str = 'ema',
             num_heads: int | None = None, image_px: int | None = None,
             lossy: bool = False, check: bool = True):
  """Writes weights in a format of another library.

  Args:
    path: see models.read.
    out: folder to write.
    format: one of writing.FORMATS.
    part: see models.read.
    num_heads: see models.read.
    image_px: side of the images that a program takes.
    lossy: leaves out what the format cannot hold.
    check: runs what was written, where its runtime is installed.
  """
  weights = models_lib.read(path, part=part, num_heads=num_heads)
  for line in writing.write(
      out, weights, format, lossy=lossy, image_px=image_px):
    print(text.visible(line))
  if check:
    print(checking.check(out, weights, format, features, lossy=lossy))


def features(weights: reading.Weights, images: np.ndarray,
             precision: str | None) -> dict[str, np.ndarray]:
  """Our features of [b, y, x, c] normalised images, see checking.Features."""
  mesh = mesh_lib.make(devices=mesh_lib.one_device())
  names = graphs.outputs(weights.config)
  with jax.default_matmul_precision(precision):
    model = backbone_lib.Backbone(
        graphs.plain(weights.config), weights.params, mesh,
        mean=weights.mean, std=weights.std)
    last, = model.read(images, spec.FeatureSpec(tuple(names), 1, 'final'))
  return {name: np.asarray(last[name]) for name in names}
