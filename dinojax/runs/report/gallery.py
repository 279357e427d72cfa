"""Pictures of a report, each with the reason where it could not be drawn."""

import base64
from collections.abc import Callable, Iterator, Mapping
import dataclasses
import io

from etils import epath
from PIL import Image

from dinojax.core import atomic
from dinojax.core import errors
from dinojax.core import text
from dinojax.core import tree
from dinojax.data import sources
from dinojax.evals import patches
from dinojax.features import backbone
from dinojax.interop import reading
from dinojax.parallel import hardware
from dinojax.parallel import mesh as mesh_lib
from dinojax.runs import batch_picture
from dinojax.runs import models as models_lib
from dinojax.runs import neighbour_picture
from dinojax.runs import patch_picture
from dinojax.runs.report import similarity
from dinojax.train import settings as settings_lib

_GRID_PATCHES = 32  # along the side of an image, at most
_GRID_PX = 512
_QUALITY = 82


@dataclasses.dataclass(frozen=True)
class Picture:
  """A picture with its words.

  Attributes:
    title: title above it.
    note: sentence that says how to read it.
    image: the picture; None: it could not be drawn.
    reason: why there is none.
  """

  title: str
  note: str
  image: Image.Image | None = None
  reason: str = ''

  def data(self) -> str:
    """The picture as an address that holds it."""
    out = io.BytesIO()
    self.image.convert('RGB').save(out, 'JPEG', quality=_QUALITY)
    return 'data:image/jpeg;base64,' + base64.b64encode(
        out.getvalue()).decode()


Models = Mapping[str, backbone.Backbone]


def load(names: Mapping[str, str]) -> Models:
  """Models by the name that is shown, from what `dinojax.load` takes.

  Raises:
    UserError: no checkpoint yet, a damaged one, or too large for a device.
  """
  return {shown: placed(models_lib.read(path), path)
          for shown, path in names.items()}


def placed(weights: reading.Weights, source: str) -> backbone.Backbone:
  """A backbone on the first device.

  Raises:
    UserError: it would not fit beside its activations.
  """
  need = 1.5 * 4 * tree.num_elements(weights.params) / 2**30
  free = hardware.available_gib(mesh_lib.one_device()[0])
  if need > free:
    raise errors.UserError(
        f'the model needs about {need:.0f} GiB and the device has {free:.0f} '
        'GiB: draw it on a larger one, with `dinojax report`')
  return backbone.Backbone.of(weights, source=source)


def draw(folder: epath.Path, settings: settings_lib.Settings,
         models: Callable[[], Models]) -> Iterator[Picture]:
  """The pictures of a run, one after the other.

  Args:
    folder: workdir.
    settings: its config.
    models: gives the models to draw, of the run first.
  """
  yield _drawn(
      'Crops as trained on',
      'The first images of the first batch: two global crops, the same with '
      'the patches hidden that the student must fill in, and local crops.',
      lambda: batch_picture.draw(
          atomic.read_json(folder / models_lib.CONFIG, ''), 4))
  images = patches.source_of(settings)
  ready = _Once(models)
  yield _drawn(
      'Patch features as colours',
      'Principal components of the patch features, and the similarity of every '
      'patch to the marked one, of images that are not trained on where there '
      'are validation images.',
      lambda: patch_picture.of_models(
          list(ready().values()), list(ready()), patch_picture.Look(
              # Whole regions of these are installed: they show more than tiles.
              images=None if images.startswith('photos:') else images,
              grid=_grid(ready()))))
  yield _drawn(
      'Nearest neighbours',
      'Some images, each followed by those whose CLS features are nearest.',
      lambda: neighbour_picture.draw(
          next(iter(ready().values())), sources.open_source(images),
          resize_px=settings.knn.resize_px, crop_px=settings.knn.crop_px))
  if similarity.has(folder):
    yield _drawn(
        'Similarity to one patch, over training',
        'The same patch of the same image at the first, a middle and the last '
        'evaluation: maps that lose their edges tell of dense features that '
        'degrade.', lambda: similarity.draw(folder, settings))


class _Once:
  """Loads models at their first use; a failure is one for every use."""

  def __init__(self, models: Callable[[], Models]):
    self._models, self._loaded, self._error = models, None, None

  def __call__(self) -> Models:
    if self._error:
      raise self._error
    if self._loaded is None:
      try:
        self._loaded = self._models()
      except Exception as error:
        self._error = error
        raise
    return self._loaded


def _drawn(title: str, note: str, make: Callable[[], Image.Image]) -> Picture:
  try:
    return Picture(title, note, make())
  except Exception as error:  # noqa: BLE001 (a picture less ends no report)
    known = isinstance(error, errors.UserError | OSError)
    reason = str(error) if known else f'{type(error).__name__}: {error}'
    return Picture(title, note, None, text.printable(reason))


def _grid(models: Models) -> int:
  """Patches along the sides of the images that all models are shown."""
  patch = max(model.config.token_px for model in models.values())
  return max(min(_GRID_PATCHES, _GRID_PX // patch), 2)
