"""Objects of several views, back in their image."""

import numpy as np
from PIL import Image
import pytest

from dinojax.evals import box_pictures
from dinojax.evals import dense_pictures
from dinojax.evals import detections
from dinojax.evals import letterbox
from dinojax.evals.sets import objects as sets


def of(*rows):
  rows = np.array(rows, float).reshape(-1, 6)
  return detections.Detections(
      rows[:, :4], rows[:, 4].astype(int), rows[:, 5])


@pytest.mark.parametrize('flip', [False, True])
def test_boxes_of_squares_come_back_to_their_image(flip):
  square = letterbox.Letterbox((200, 100), 64)
  box = np.array([20.0, 10, 80, 50])
  seen = box if not flip else np.array([120.0, 10, 180, 50])
  got = detections.at_image(
      (seen * 0.32)[None], np.array([3]), np.array([0.5]), square, flip=flip)
  np.testing.assert_allclose(got.boxes[0], box, atol=1e-6)
  assert (got.labels[0], got.scores[0]) == (3, 0.5)
  beyond = detections.at_image(
      np.array([[-5.0, 0, 64, 64]]), np.array([0]), np.array([1.0]), square)
  np.testing.assert_allclose(beyond.boxes[0], [0, 0, 200, 100])


def test_a_box_that_is_there_twice_counts_less_the_second_time():
  got = detections.soft_nms(of(
      (0, 0, 10, 10, 0, 0.9), (0, 0, 10, 10, 0, 0.8), (50, 50, 60, 60, 0, 0.3),
      (0, 0, 10, 5, 0, 0.7)))
  # exp(−1 / 0.5) of the copy; exp(−0.5² / 0.5) of the half.
  np.testing.assert_allclose(got.scores, [
      0.9, 0.7 * np.exp(-0.5), 0.3, 0.8 * np.exp(-2) * np.exp(-0.5)])
  assert len(detections.soft_nms(of(
      *[(0, 0, 10, 10, 0, 0.5)] * 9)).scores) == 4  # until 0.001


def test_views_are_merged_by_class_and_one_view_stays_as_it_is():
  first = of((0, 0, 10, 10, 0, 0.5), (0, 0, 10, 10, 1, 0.6))
  alone = detections.merged([first])
  assert alone.labels.tolist() == [1, 0]
  both = detections.merged([first, of((0, 0, 10, 10, 0, 0.7))])
  assert both.labels.tolist() == [0, 1, 0]
  np.testing.assert_allclose(both.scores, [0.7, 0.6, 0.5 * np.exp(-2)])
  assert len(detections.merged([first, first], top=1).scores) == 1
  assert not len(detections.merged([of(), of()]).scores)


def test_every_view_once_with_its_mirror_image():
  assert detections.views((64, 96, 64), True) == (
      (64, False), (64, True), (96, False), (96, True))
  assert detections.views((64,), False) == ((64, False),)


def test_pictures_say_when_nothing_reached_the_score():
  classes, truth = ('a', 'b'), sets.Truth(
      np.float64([[900, 900, 2900, 2900]]), np.array([1]), np.zeros(1, bool),
      np.ones(1))
  picture = Image.new('RGB', (4000, 4000))
  got = box_pictures.panel(picture, truth, of(
      (900, 900, 2900, 2900, 1, 0.05)), classes)
  assert got.shape[0] < 400  # whatever the size of the image
  blank = box_pictures.panel(picture, None, of(), classes)
  colors = [tuple(x) for x in dense_pictures.palette(2)]
  seen = lambda x: {tuple(map(int, p)) for p in x.reshape(-1, 3)}
  assert tuple(map(int, colors[1])) in seen(got)  # the line of the true box
  assert blank.shape[0] < 400
