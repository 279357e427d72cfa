"""Pictures people look at: first batches, PCA of patches, similarity maps."""

from collections.abc import Sequence
import dataclasses
import os

import einops
import numpy as np
from PIL import Image
from PIL import ImageDraw
from PIL import ImageFont

from dinojax.core import atomic
from dinojax.core import errors
from dinojax.metrics import similarity as cosines

_MARGIN, _CAPTION = 8, 22
_LEAST_SHARE = 0.03  # of patches that are foreground, or background
_INK, _PAPER = (40, 40, 40), (250, 250, 248)
# Seven points of a perceptually even ramp, dark blue to yellow.
_RAMP = np.array([
    (13, 8, 60), (70, 3, 130), (140, 20, 140), (200, 60, 100),
    (235, 110, 60), (250, 170, 40), (245, 240, 110)], float)


def check_out(out: str):
  """Checks that a picture can be written, before it is drawn.

  Raises:
    UserError: no kind of picture, or no place for it.
  """
  kind = os.path.splitext(out)[1].lower()
  if Image.registered_extensions().get(kind) not in Image.SAVE:
    raise errors.UserError(
        f'--out={out} is no picture by its name: end it with .png or .jpg')
  atomic.check_out(out)


def pca_rgb(features: np.ndarray,
            mask: np.ndarray | None = None) -> np.ndarray:
  """Three principal components of patch features as colours.

  Args:
    features: [b, y, x, d]; the components are of all images together.
    mask: [b, y, x] bool, patches whose components are taken and that are
      coloured, the others are black; None: all.

  Returns:
    [b, y, x, 3] uint8: sigmoid of twice the whitened components.

  Source: DINOv3's PCA notebook.
  """
  shape, d = features.shape[:3], features.shape[3]
  if d < 3:
    raise ValueError(f'PCA colours need 3 features of a patch, not {d}')
  flat = einops.rearrange(features, 'b y x d -> (b y x) d').astype(np.float64)
  taken = np.ones(len(flat), bool) if mask is None else mask.reshape(-1)
  parts = (flat - flat[taken].mean(0)) @ _axes(flat[taken], 3).T
  parts /= parts[taken].std(0) + 1e-12
  colours = 255 / (1 + np.exp(-2 * np.clip(parts, -30, 30)))
  colours[~taken] = 0
  return np.round(colours).astype(np.uint8).reshape(*shape, 3)


def _axes(rows: np.ndarray, count: int) -> np.ndarray:
  """The first principal axes [count, d] of rows [r, d], the widest first."""
  gap = rows - rows.mean(0)
  # Of many rows, the axes of their covariance are found much sooner.
  _, axes = np.linalg.eigh(gap.T @ gap)
  axes = axes[:, ::-1][:, :count].T
  # An axis and its opposite are the same: the larger side counts as positive.
  biggest = np.abs(axes).argmax(1)
  return axes * np.sign(axes[np.arange(count), biggest])[:, None]


def foreground(features: np.ndarray) -> np.ndarray:
  """[b, y, x] bool, the patches of what images show, from [b, y, x, d].

  The first principal component of all images together parts most scenes into
  what they show and what is around it; of the two sides, the background is the
  one that more of the borders are of. Where one side has nearly nothing, all
  is foreground.
  """
  flat = einops.rearrange(features, 'b y x d -> (b y x) d').astype(np.float64)
  values = ((flat - flat.mean(0)) @ _axes(flat, 1)[0]).reshape(
      features.shape[:3])
  mask = values > _parting(values.reshape(-1))
  border = np.ones(features.shape[1:3], bool)
  border[1:-1, 1:-1] = False
  if mask[:, border].mean() > mask[:, ~border].mean():
    mask = ~mask
  if not _LEAST_SHARE < mask.mean() < 1 - _LEAST_SHARE:
    return np.ones_like(mask)
  return mask


@dataclasses.dataclass(frozen=True)
class ForegroundPCA:
  """Components of the patches that a classifier takes for foreground.

  Attributes:
    score: [b, y, x] probability of the foreground.
    filtered: [b, y, x] medians of it.
    mask: [b, y, x] bool, the foreground.
    axes: [c, d] principal axes of the foreground.
    variance: [c] variance along them.
    mean: [d] mean of the foreground.
    colours: [b, y, x, c] from 0 to 1; 0 on the background.
  """

  score: np.ndarray
  filtered: np.ndarray
  mask: np.ndarray
  axes: np.ndarray
  variance: np.ndarray
  mean: np.ndarray
  colours: np.ndarray


def foreground_pca(features: np.ndarray, weight: np.ndarray, bias: float, *,
                   threshold: float = 0.5, median: int = 3,
                   components: int = 3, gain: float = 2.0) -> ForegroundPCA:
  """Whitened components of the foreground that a classifier tells.

  Args:
    features: [b, y, x, d] patches; the components are of all images together.
    weight: [d] weights of a logistic classifier of patches.
    bias: its bias.
    threshold: least probability of the foreground, exclusive.
    median: side of the window of the medians, odd; zeros beyond the border.
    components: number of components, c.
    gain: factor of the whitened components before the sigmoid.

  Raises:
    UserError: too few foreground patches.

  Source: DINOv3's PCA notebook.
  """
  features = np.asarray(features, np.float64)
  with np.errstate(over='ignore'):  # its sigmoid is zero then
    score = 1 / (1 + np.exp(
        -(features @ np.asarray(weight, np.float64) + bias)))
  side = median // 2
  padded = np.pad(score, ((0, 0), (side, side), (side, side)))
  filtered = np.median(np.lib.stride_tricks.sliding_window_view(
      padded, (median, median), axis=(1, 2)), axis=(-2, -1))
  mask = filtered > threshold
  rows = features[mask]
  if len(rows) <= components:
    raise errors.UserError(
        f'{len(rows)} patches are foreground by the classifier, too few for '
        f'{components} components: give other images, or another classifier')
  mean, axes = rows.mean(0), _axes(rows, components)
  parts = (features - mean) @ axes.T
  variance = parts[mask].var(0, ddof=1)
  whitened = parts / np.sqrt(np.maximum(variance, 1e-24))
  colours = 1 / (1 + np.exp(-np.clip(gain * whitened, -60, 60)))
  return ForegroundPCA(score, filtered, mask, axes, variance, mean,
                       np.where(mask[..., None], colours, 0))


def _parting(values: np.ndarray) -> float:
  """The value that parts numbers into two groups that differ most.

  Source: Otsu 1979.
  """
  ordered = np.sort(values)
  total, count = np.cumsum(ordered), np.arange(1, len(ordered))
  low = total[:-1] / count
  high = (total[-1] - total[:-1]) / (len(ordered) - count)
  between = count * (len(ordered) - count) * (high - low) ** 2
  place = int(between.argmax())
  return (ordered[place] + ordered[place + 1]) / 2


def similarity(features: np.ndarray, query: tuple[int, int]) -> np.ndarray:
  """Cosine of every patch of [y, x, d] with the one at (row, column)."""
  unit = cosines.unit(features)
  return unit @ unit[query]


def colorize(values: np.ndarray) -> np.ndarray:
  """[y, x] numbers as colours, smallest dark, largest bright."""
  span = max(float(np.ptp(values)), 1e-12)
  place = (values - values.min()) / span * (len(_RAMP) - 1)
  low = np.minimum(place.astype(int), len(_RAMP) - 2)
  part = (place - low)[..., None]
  colours = _RAMP[low] * (1 - part) + _RAMP[low + 1] * part
  return np.round(colours).astype(np.uint8)


def enlarge(image: np.ndarray, side: int, smooth: bool = False) -> Image.Image:
  """An array as a picture whose longer side is about `side` pixels."""
  picture = Image.fromarray(image)
  factor = side / max(picture.size)
  size = tuple(max(round(n * factor), 1) for n in picture.size)
  how = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
  return picture.resize(size, how)


def mark(picture: Image.Image, at: tuple[float, float]) -> Image.Image:
  """Rings the point (x, y)."""
  out = picture.copy()
  draw = ImageDraw.Draw(out)
  x, y = at
  for radius, ink in ((7, (0, 0, 0)), (5, (255, 255, 255))):
    draw.ellipse((x - radius, y - radius, x + radius, y + radius),
                 outline=ink, width=2)
  return out


def panel(rows: Sequence[Sequence[Image.Image]],
          titles: Sequence[str] = ()) -> Image.Image:
  """Pictures in rows, with a title over each column."""
  columns = max(len(row) for row in rows)
  widths = [max((row[i].width for row in rows if i < len(row)), default=0)
            for i in range(columns)]
  heights = [max(p.height for p in row) for row in rows]
  top = _CAPTION if titles else 0
  sheet = Image.new(
      'RGB', (sum(widths) + _MARGIN * (columns + 1),
              top + sum(heights) + _MARGIN * (len(rows) + 1)), _PAPER)
  draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
  x = _MARGIN
  for title, width in zip(titles, widths, strict=False):
    draw.text((x, 5), title, _INK, font=font)
    x += width + _MARGIN
  y = top + _MARGIN
  for row, height in zip(rows, heights, strict=True):
    x = _MARGIN
    for picture, width in zip(row, widths, strict=False):
      sheet.paste(picture, (x, y))
      x += width + _MARGIN
    y += height + _MARGIN
  return sheet


def contact_sheet(batch: dict, mean: Sequence[float], std: Sequence[float],
                  count: int = 8) -> Image.Image:
  """The first samples of a training batch as the student sees them.

  Args:
    batch: global and, if any, local: normalised crops [b, v, y, x, c]; mask,
      if any: [b, v, p], masked patches are shown grey.
    mean: means that the crops were normalised with.
    std: standard deviations that the crops were normalised with.
    count: number of samples.
  """
  def pixels(crops):
    return np.round(np.clip(
        (np.asarray(crops, np.float32) * std + mean) * 255, 0, 255)
    ).astype(np.uint8)

  views = batch['global'].shape[1]
  titles = [f'global {i + 1}' for i in range(views)]
  if 'mask' in batch:
    titles += [f'masked {i + 1}' for i in range(views)]
  if 'local' in batch:
    titles += [f'local {i + 1}' for i in range(batch['local'].shape[1])]
  rows = []
  for i in range(min(count, len(batch['global']))):
    crops = pixels(batch['global'][i])
    row = [enlarge(crop, 112) for crop in crops]
    if 'mask' in batch:
      row += [enlarge(_hide(crop, mask), 112)
              for crop, mask in zip(crops, batch['mask'][i], strict=True)]
    if 'local' in batch:
      row += [enlarge(crop, 72) for crop in pixels(batch['local'][i])]
    rows.append(row)
  return panel(rows, titles)


def _hide(crop: np.ndarray, mask: np.ndarray) -> np.ndarray:
  """Masked patches in grey."""
  side = round(len(mask) ** 0.5)
  patch = crop.shape[0] // side
  hidden = np.kron(mask.reshape(side, side), np.ones((patch, patch), bool))
  return np.where(hidden[..., None], np.uint8(120), crop)
