"""Prepared TFDS data sets of a few images, made offline."""

import io

import numpy as np
from PIL import Image
import tensorflow_datasets as tfds


class TinyPictures(tfds.core.GeneratorBasedBuilder):
  """Six labelled pictures of one colour each."""

  VERSION = tfds.core.Version('1.0.0')

  def _info(self):
    return tfds.core.DatasetInfo(
        builder=self, features=tfds.features.FeaturesDict({
            'image': tfds.features.Image(shape=(None, None, 3)),
            'label': tfds.features.ClassLabel(names=['dark', 'light'])}))

  def _split_generators(self, dl_manager):
    return {'train': self._generate_examples()}

  def _generate_examples(self):
    for i in range(6):
      file = io.BytesIO()  # encoded: encoding an array would need TensorFlow
      Image.new('RGB', (10, 12), (40 * i,) * 3).save(file, 'PNG')
      yield i, {'image': io.BytesIO(file.getvalue()), 'label': i // 3}


class TinyNumbers(tfds.core.GeneratorBasedBuilder):
  """A data set without images."""

  VERSION = tfds.core.Version('1.0.0')

  def _info(self):
    return tfds.core.DatasetInfo(
        builder=self, features=tfds.features.FeaturesDict(
            {'value': np.float32}))

  def _split_generators(self, dl_manager):
    return {'train': iter([(0, {'value': 1.0})])}

  def _generate_examples(self):
    raise NotImplementedError
