"""Published figures: of the weights, the protocol and the set alone."""

import pytest

from dinojax.evals import published
from dinojax.evals import registry
from dinojax.runs import scores


@pytest.mark.parametrize('model, test, value', [
    ('/w/dinov2_vits14_pretrain.pth', 'imagenet:/in', 79.0),
    ('facebook/dinov2-large', 'imagenet:/in?split=val', 83.5),
    ('dinov2_vits14_reg4_pretrain.pth', 'imagenet:/in', None),
    ('facebook/dinov2-small', 'folder:/mine', None),
    ('runs/mine@500', 'imagenet:/in', None)])
def test_a_figure_is_of_these_weights_and_this_set(model, test, value):
  assert published.figure(model, 'knn', test, 'top-1, k 20') == value
  assert published.figure(model, 'logistic', test, 'top-1') is None


def test_names_of_the_hub_tell_sizes_apart():
  figure = lambda model: published.figure(
      f'facebook/dinov3-{model}-pretrain-lvd1689m', 'segmentation',
      'ade20k:DIR', 'mIoU')
  assert [figure(model) for model in (
      'vits16', 'vits16plus', 'vitb16', 'vitl16', 'vith16plus',
      'vit7b16')] == [47.0, 48.8, 51.8, 54.9, 54.8, 55.9]


def test_protocols_are_known():
  assert {protocol for protocol, _, _ in published._FIGURES} <= set(
      registry.PROTOCOLS)


def test_it_stands_behind_the_number():
  row = {'value': 78.93, 'low': 78.6, 'high': 79.3, 'published': 79.0}
  assert scores.shown(row) == '78.9 (78.6–79.3) [published 79.0]'
  assert scores.shown(row | {'low': None, 'published': None}) == '78.9'
  assert scores.number(0.4031) == '0.403' and scores.number(0.0) == '0.0'
