"""Charts: what is drawn is what was logged, and it stands there as text."""

import math
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from dinojax.runs.report import charts


def tree_of(chart):
  return ET.fromstring(chart.html())


def polylines(chart):
  return [[tuple(map(float, point.split(',')))
           for point in line.get('points').split()]
          for line in tree_of(chart).iter('polyline')]


def table(chart):
  return [[''.join(cell.itertext()) for cell in row]
          for row in tree_of(chart).iter('tr')]


@pytest.mark.parametrize('low, high, expected', [
    (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (0, 9, [0, 2, 4, 6, 8]),
    (6.2, 6.4, [6.2, 6.25, 6.3, 6.35, 6.4]), (-1, 1, [-1, -0.5, 0, 0.5, 1]),
    (100, 625_000, [200_000, 400_000, 600_000]), (3, 3, [3])])
def test_ticks_are_round_numbers_within(low, high, expected):
  np.testing.assert_allclose(charts.ticks(low, high), expected, rtol=1e-9)


@pytest.mark.parametrize('value, text', [
    (0, '0'), (8.317766, '8.318'), (625_000, '625k'), (1.25e6, '1.25M'),
    (3.2e9, '3.2G'), (2e-5, '2e-05'), (0.042, '0.042'), (-12.5, '-12.5'),
    (1024, '1024')])
def test_numbers_are_short(value, text):
  assert charts.number(value) == text


def test_a_line_is_drawn_where_its_values_are():
  line, = polylines(charts.Chart(
      'x', [charts.Line('a', [0, 50, 100], [0.0, 1.0, 0.5])]))
  (x0, y0), (x1, y1), (x2, y2) = line
  assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
  assert y2 == pytest.approx((y0 + y1) / 2, abs=0.2) and y0 > y1


def test_many_points_are_means_in_a_band_of_extremes():
  values = np.random.default_rng(0).normal(size=10_000)
  chart = charts.Chart('x', [charts.Line('a', range(10_000), values)])
  line, = polylines(chart)
  assert len(line) == 160 and len(chart.html()) < 15_000
  bins = np.array_split(values, 160)
  heights = np.array([y for _, y in line])
  means = np.array([b.mean() for b in bins])
  fit = np.polyfit(means, heights, 1)
  assert fit[0] < 0 and np.abs(np.polyval(fit, means) - heights).max() < 0.1
  assert len(list(tree_of(chart).iter('polygon'))) == 1


def test_a_level_is_drawn_at_its_value_and_named():
  chart = charts.Chart(
      'Loss', [charts.Line('a', [0, 1], [math.log(4096), 7.0])],
      [charts.Level('ln 4096', math.log(4096))])
  (x, y), _ = polylines(chart)[0]
  level, = [e for e in tree_of(chart).iter('line')
            if e.get('class') == 'level']
  assert float(level.get('y1')) == pytest.approx(y, abs=0.1)
  assert 'ln 4096 8.318' in ''.join(tree_of(chart).itertext())


def test_values_that_are_not_finite_are_left_out():
  chart = charts.Chart('x', [
      charts.Line('a', [1, 2, 3], [1.0, math.nan, 2.0]),
      charts.Line('b', [1], [math.inf])])
  assert [len(line) for line in polylines(chart)] == [2]
  assert 'nan' not in chart.html() and 'inf' not in chart.html()


def test_every_number_stands_there_as_text():
  chart = charts.Chart('x', [
      charts.Line('first', [10, 20, 30], [1.5, 2.5, 3.5]),
      charts.Line('second', [20, 30], [7.0, 8.0])], [charts.Level('raw', 4.0)])
  assert table(chart) == [
      ['step', 'first', 'second'], ['10', '1.5', ''], ['20', '2.5', '7'],
      ['30', '3.5', '8']]
  assert 'raw: 4' in chart.html()
  label = tree_of(chart).find('.//svg').get('aria-label')
  assert label == 'x: first from 1.5 to 3.5; second from 7 to 8'


def test_names_are_text_and_no_markup():
  name = '<script>alert(1)</script>&'
  chart = charts.Chart(name, [charts.Line(name, [1, 2], [1.0, 2.0])],
                       [charts.Level(name, 1.0)], name)
  assert '<script>' not in chart.html()
  assert not list(tree_of(chart).iter('script'))
  assert name in ''.join(tree_of(chart).itertext())


@pytest.mark.parametrize('lines', [
    [], [charts.Line('a', [], [])], [charts.Line('a', [1], [math.nan])]])
def test_without_numbers_it_says_so(lines):
  assert 'No numbers yet' in charts.Chart('x', lines).html()


@pytest.mark.parametrize('steps, values', [
    ([5], [3.0]), ([1, 2], [3.0, 3.0]), ([1, 2], [0.0, 0.0])])
def test_one_point_and_constant_lines_are_drawn(steps, values):
  html = charts.Chart('x', [charts.Line('a', steps, values)]).html()
  assert not re.search(r'nan|inf', html) and (
      '<circle' in html or '<polyline' in html)


def test_a_notebook_shows_it_with_its_style():
  chart = charts.Chart('x', [charts.Line('a', [1, 2], [1.0, 2.0])])
  assert charts.STYLE in chart._repr_html_()
  assert chart.html() in chart._repr_html_()
