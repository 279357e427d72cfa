"""Data sets of TensorFlow Datasets, without TensorFlow."""

from urllib import parse

from etils import epath

from dinojax.core import errors
from dinojax.core import text
from dinojax.data import record


class Tfds:
  """A prepared TFDS data set, as raw bytes and without TensorFlow."""

  def __init__(self, rest: str):
    """Opens NAME/SPLIT, or NAME/SPLIT?data_dir=DIR.

    Raises:
      UserError: malformed, not prepared on this machine, or without images.
    """
    self.spec = f'tfds:{rest}'
    place, _, query = rest.partition('?')
    name, _, self._split = place.rpartition('/')
    if not name:
      raise errors.UserError(
          f'{self.spec} has no split: write tfds:NAME/SPLIT, such as '
          'tfds:imagenet2012/train')
    self._name = name
    self._data_dir = dict(parse.parse_qsl(query)).get('data_dir')
    self._source = None
    features = self._builder().info.features
    if 'image' not in features:
      raise errors.UserError(
          f'{self.spec} has no feature named image, only '
          f'{", ".join(features)}: choose a data set of images')
    label = features['label'] if 'label' in features else None
    self.classes = tuple(getattr(label, 'names', None) or ())
    self._length = len(self._open())

  def order(self, sizes: bool = False) -> list[str]:
    """The version and the files of the split: records have no names."""
    del sizes  # of the images; those of the files are always known
    info = self._builder().info
    name = self._split.split('[')[0]
    parts = info.splits.values() if name == 'all' else [info.splits[name]]
    return [f'{info.full_name} {self._split}'] + [
        f'{path.name}\t{path.stat().length}' for part in parts
        for path in map(epath.Path, part.filepaths)]

  def _builder(self):
    import tensorflow_datasets as tfds  # a second of import time
    try:
      builder = tfds.builder(self._name, data_dir=self._data_dir)
      prepared = builder.info.splits and self._split.split('[')[0] in (
          *builder.info.splits, 'all')
    except Exception as error:  # damaged notes of it have many errors
      raise errors.UserError(
          f'{self.spec} cannot be opened: {_first_line(error)}') from error
    if not prepared:
      raise errors.UserError(
          f'{self.spec} is not prepared here: run `tfds build '
          f'{self._name} --file_format=array_record'
          + (f' --data_dir={self._data_dir}' if self._data_dir else '')
          + '` first; nothing is downloaded during training')
    return builder

  def _open(self):
    if self._source is None:
      import tensorflow_datasets as tfds
      builder = self._builder()
      try:
        self._source = builder.as_data_source(
            split=self._split,
            decoders={'image': tfds.decode.SkipDecoding()})
      except NotImplementedError as error:  # of TFRecord files
        kind = getattr(builder.info.file_format, 'value', 'another format')
        raise errors.UserError(
            f'{self.spec} is prepared as {kind}, which has no random access: '
            f'run {self._command()} beside it') from error
      except (ValueError, OSError, RuntimeError) as error:
        raise errors.UserError(
            f'{self.spec} cannot be opened: {_first_line(error)}; prepare '
            f'it again, or choose another split') from error
    return self._source

  def _command(self) -> str:
    """Command for files that can be read here; the old ones stay."""
    place = f'{self._data_dir or "~/tensorflow_datasets"}_array_record'
    return (f'`tfds build {self._name} --file_format=array_record '
            f'--data_dir={place}`, and set tfds:{self._name}/{self._split}'
            f'?data_dir={place},')

  def __getstate__(self) -> dict:
    return self.__dict__ | {'_source': None}

  def __len__(self) -> int:
    return self._length

  def __getitem__(self, index: int) -> record.Record:
    try:
      row = self._open()[index]
      label = int(row.get('label', -1))
      return record.Record(row['image'], label, f'{self._split}/{index}')
    except errors.UserError:
      raise
    except Exception as error:  # a damaged file has many errors
      raise OSError(f'record {index}: {_first_line(error)}') from error


def _first_line(error: Exception) -> str:
  return text.printable((str(error).splitlines() or [''])[0])
