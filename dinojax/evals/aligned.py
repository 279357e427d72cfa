"""Images and texts in one space: a backbone with a head of text alignment."""

from collections.abc import Callable, Mapping, Sequence
import functools
from typing import Any

import jax
import numpy as np

from dinojax.augment import photometric
from dinojax.core import errors
from dinojax.core import tree
from dinojax.data import captions as captions_lib
from dinojax.data import record as record_lib
from dinojax.data import tokenizers
from dinojax.evals import class_texts
from dinojax.evals import zero_shot
from dinojax.features import backbone as backbone_lib
from dinojax.features import preprocessing as preprocessing_lib
from dinojax.features import spec as spec_lib
from dinojax.features import stream
from dinojax.metrics import retrieval
from dinojax.parallel import mesh as mesh_lib
from dinojax.parallel import processes
from dinojax.parallel import sharding
from dinojax.probes import head as head_lib
from dinojax.probes.tasks import align

_TEXTS = 256  # that go through the tower at a time


class Aligned:
  """A backbone with its vision head and text tower, on its devices.

  Attributes:
    model: the backbone.
    task: sizes of both heads.
    params: parameters of both, split over the devices.
    tokenizer: texts to ids.
  """

  def __init__(self, model: backbone_lib.Backbone, task: align.Align,
               params: tree.Tree, tokenizer: tokenizers.Tokenizer):
    """Puts the parameters on the devices, where they are not there yet.

    Raises:
      UserError: a tokenizer of another vocabulary or length.
    """
    check(task, tokenizer)
    self.model, self.task, self.tokenizer = model, task, tokenizer
    mesh = model.mesh
    with mesh_lib.activate(mesh):
      self.params = jax.device_put(params, jax.tree.map(
          lambda spec: jax.NamedSharding(mesh, spec), task.specs(mesh),
          is_leaf=lambda x: isinstance(x, jax.P)))
    options = mesh_lib.compiler_options(mesh)
    self._tower = jax.jit(functools.partial(_read, task),
                          compiler_options=options)
    self._images = jax.jit(functools.partial(
        _seen, model.net, task, (model.mean, model.std)),
                           static_argnames='patches', compiler_options=options)

  @classmethod
  def of(cls, model: backbone_lib.Backbone, head: head_lib.Head,
         tokenizer: tokenizers.Tokenizer) -> 'Aligned':
    """A head that was kept, on a backbone that it fits."""
    return cls(model, head.task, head.params, tokenizer)

  # What stream.read asks of a model.
  config = property(lambda self: self.model.config)
  mesh = property(lambda self: self.model.mesh)
  value_range = property(lambda self: self.model.value_range)

  def run(self, images: np.ndarray, specs: Mapping[str, Any] | None = None, *,
          pixels: bool = True, reduce: Callable | None = None,
          patches: bool = False) -> dict[str, jax.Array]:
    """Embeddings of images [b, y, x, c] uint8, this process's.

    Args:
      images: squares, or whole images in whole patches.
      specs: nothing more than embeddings can be had: {}.
      pixels: images are not normalised yet.
      reduce: None.
      patches: True gives patches of the head and of the backbone as well.

    Returns:
      image [b, e] float32, not normalised; 'patches' [b, p, e'] and 'backbone'
      [b, p, d] where they are asked for.
    """
    assert pixels and not specs and reduce is None
    with mesh_lib.activate(self.mesh):
      return self._images(self.model.params, self.params,
                          processes.to_devices(images, self.mesh),
                          patches=patches)

  def texts(self, texts: Sequence[str]) -> np.ndarray:
    """[n, e] float32 embeddings of texts, not normalised; on every process."""
    ids = self.tokenizer.encode(texts)
    mesh, out = self.mesh, []
    each = -(-_TEXTS // mesh.size) * mesh.size
    count, place = stream.takers(mesh)  # the mesh may be of this process alone
    for start in range(0, len(ids), each):
      full = np.zeros((each, ids.shape[1]), np.int32)
      some = ids[start:start + each]
      full[:len(some)] = some
      mine = np.split(full, count)[place]
      with mesh_lib.activate(mesh):
        rows = self._tower(self.params[align.TEXT], processes.to_devices(
            mine, mesh))
      out.append(np.asarray(rows.addressable_data(0))[:len(some)])
    return np.concatenate(out) if out else np.zeros(
        (0, self.task.text.embed_dim), np.float32)

  def images(self, images: Any, *, resize_px: int = 256, crop_px: int = 224
             ) -> np.ndarray:
    """[b, e] float32 embeddings of images, not normalised.

    Args:
      images: see Backbone.preprocess.
      resize_px: side that the short side is resized to, bicubic.
      crop_px: side of the square that is cut from the centre.

    Raises:
      UserError: an image that cannot be read.
    """
    pixels = self.model.pixels(images, resize_px=resize_px, crop_px=crop_px)
    count, unit = len(pixels), self.mesh.size
    full = np.zeros((-(-count // unit) * unit, *pixels.shape[1:]), np.uint8)
    full[:count] = pixels
    return np.asarray(self.run(full)['image'])[:count]

  def classes(self, names: Sequence[str], templates: Sequence[str]
              ) -> np.ndarray:
    """[k, t, e] embeddings of the names of classes in sentences."""
    whole = self.texts([sentence.replace(class_texts.MARK, name)
                        for name in names for sentence in templates])
    return whole.reshape(len(names), len(templates), -1)

  def table(self, source: record_lib.Source,
            sizes: preprocessing_lib.Preprocessing,
            reading: stream.Reading = stream.AS_USUAL,
            progress: Callable[[int], None] = lambda count: None
            ) -> dict[str, np.ndarray]:
    """Embeddings `image` [r, e] of all readable images, on every process.

    Args:
      source: images.
      sizes: sizes of their squares.
      reading: how they are read.
      progress: gets the number of images since the last call.

    Returns:
      Also index and label of every row, in data order.
    """
    def columns(batch):
      stream.warn(batch.bad, source)
      progress(len(batch.rows) + len(batch.bad))
      return {'image': batch.local()['image']}

    return stream.table(self.mesh, stream.read(
        self, {}, source, sizes, reading), columns)


def check(task: align.Align, tokenizer: tokenizers.Tokenizer):
  """Refuses a tokenizer that a text tower was not made for.

  Raises:
    UserError: another vocabulary, or texts of another length.
  """
  if tokenizer.num_ids != task.text.vocabulary:
    raise errors.UserError(
        f'the tokenizer {tokenizer.spec} has {tokenizer.num_ids} ids, and the '
        f'text tower {task.text.vocabulary}: give the vocabulary that it was '
        'trained with')
  if tokenizer.context > task.text.context:
    raise errors.UserError(
        f'texts of {tokenizer.context} ids do not fit the text tower, which '
        f'takes {task.text.context}: open the tokenizer with that length')


def _read(task: align.Align, params: tree.Tree, ids: jax.Array) -> jax.Array:
  """Embeddings of texts, whole on every device."""
  return sharding.everywhere(task.embed_text(params, ids))


def _seen(net: Any, task: align.Align, pixels: tuple, backbone: tree.Tree,
          params: tree.Tree, images: jax.Array, *, patches: bool
          ) -> dict[str, jax.Array]:
  """Embeddings, and patches where they are asked for."""
  images = photometric.normalize(images, *pixels)
  features = net.apply(backbone, images, functools.partial(
      spec_lib.compute, specs=dict(task.choices)))[align.CHOICE]
  out, _ = task.outputs({'params': params}, features, {}, None)
  if not patches:
    return {'image': out['image']}
  return {'image': out['image'], 'patches': out['patches'],
          'backbone': features[-1]['patches']}


RANKS = (1, 5, 10)


def recalls(model: Aligned, source: captions_lib.Captions,
            sizes: preprocessing_lib.Preprocessing,
            reading: stream.Reading = stream.AS_USUAL,
            progress: Callable[[int], None] = lambda count: None
            ) -> dict[str, np.ndarray]:
  """Ranks of captions among images, and of images among captions.

  Args:
    model: embeds both.
    source: images with their captions.
    sizes: see Aligned.table.
    reading: see Aligned.table.
    progress: see Aligned.table.

  Returns:
    index [r] of every readable image; image_rank [r]: place, from 0, of its
    best caption among all; text_rank [r, n]: place of the image for each of
    its captions, −1 beyond their number.

  Source: retrieval on Flickr30k and COCO as CLIP measures it.
  """
  table = model.table(source, sizes, reading, progress)
  owners = source.owners()
  known = np.isin(owners, table['index'])
  texts = [source.captions[int(i)] for i in np.flatnonzero(known)]
  place = np.searchsorted(table['index'], owners[known])
  unit = lambda x: x / np.maximum(
      np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
  image, text = unit(table['image']), unit(model.texts(texts))
  by_image, by_text = retrieval.ranks(image, text, place)
  counts = np.bincount(place, minlength=len(image))
  each = np.full((len(image), max(counts.max(initial=1), 1)), -1, np.int64)
  column = np.arange(len(place)) - np.repeat(
      np.cumsum(counts) - counts, counts)
  each[place, column] = by_text
  return {'index': table['index'], 'image_rank': by_image, 'text_rank': each}


def recall_scores(rows: Mapping[str, np.ndarray]) -> dict[str, float]:
  """R@1, R@5 and R@10 of both ways, in per cent, of rows of `recalls`."""
  image, text = rows['image_rank'], rows['text_rank']
  text = text[text >= 0]
  return {f'image to text R@{n}': 100 * float(np.mean(image < n))
          for n in RANKS} | {
              f'text to image R@{n}': 100 * float(np.mean(text < n))
              for n in RANKS}


def class_vectors(model: Aligned, names: Sequence[str],
                  templates: Sequence[str], *, of_patches: bool = False
                  ) -> np.ndarray:
  """Unit vectors of classes, of whole images or of patches, see zero_shot."""
  text = model.classes(names, templates)
  make = (zero_shot.patch_class_vectors if of_patches
          else zero_shot.class_vectors)
  return np.asarray(make(text))


def compares_patches(model: Aligned, head: str, tokens: str):
  """Refuses heads whose patches have no part in the embedding.

  Args:
    model: the head.
    head: place of it, for messages.
    tokens: 'head' or 'backbone'.

  Raises:
    UserError: such a head, or a backbone of another width than the texts.
  """
  vision = model.task.vision
  if not (vision.use_cls and vision.use_patches):
    part = 'CLS' if vision.use_cls else 'patches'
    raise errors.UserError(
        f'{head} embeds an image by its {part} alone, and patches are compared '
        'with the second half of a text: give a head with vision.use_cls and '
        'vision.use_patches')
  if tokens == 'backbone' and model.config.embed_dim != vision.part_dim:
    raise errors.UserError(
        f'open_vocabulary.tokens=backbone: patches of {model.model.source} '
        f'have {model.config.embed_dim} values, and half a text '
        f'{vision.part_dim}: set open_vocabulary.tokens=head')
