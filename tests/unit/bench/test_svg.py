"""The drawings are well-formed, within their frame, and escape what they show."""

from __future__ import annotations

import itertools
import re
import xml.etree.ElementTree as ET

import pytest

from bench.svg import Chart, Curve, draw, steps

SVG = "{http://www.w3.org/2000/svg}"
CHART = Chart("Time & <growth>", "hosts", "seconds")


def test_a_drawing_is_well_formed_with_a_line_for_each_curve():
    root = ET.fromstring(
        draw(CHART, [Curve("ours", [(64, 0.1), (5000, 8)]), Curve("a <b>", [(64, 1), (256, 4)])])
    )
    assert root.tag == SVG + "svg"
    assert len(root.findall(SVG + "polyline")) == 2
    texts = [each.text for each in root.iter(SVG + "text")]
    assert {"Time & <growth>", "hosts", "seconds", "ours", "a <b>"} <= set(texts)


def test_all_points_lie_within_the_frame():
    root = ET.fromstring(draw(CHART, [Curve("ours", [(0, 0), (10, 3), (4999, 123.4)])]))
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    for line in root.iter(SVG + "polyline"):
        for pair in line.attrib["points"].split():
            x, y = map(float, pair.split(","))
            assert 0 <= x <= width
            assert 0 <= y <= height


def test_names_of_lines_that_end_together_do_not_overlap():
    curves = [Curve(name, [(0, 0), (10, 5)]) for name in ("first", "second", "third")]
    found = re.findall(r'y="([\d.]+)" style="fill', draw(CHART, curves))
    heights = sorted(map(float, found))
    assert all(below - above >= 15 for above, below in itertools.pairwise(heights))


def test_it_reads_on_a_dark_ground_too():
    assert "prefers-color-scheme: dark" in draw(CHART, [Curve("ours", [(1, 1)])])


@pytest.mark.parametrize("highest", [0, 0.003, 1, 7, 99, 100, 5000, 123456.7])
def test_steps_are_round_begin_at_nought_and_reach_the_highest(highest):
    found = steps(highest)
    assert found[0] == 0
    assert found[-1] >= highest * (1 - 1e-9)
    assert 2 <= len(found) <= 7
