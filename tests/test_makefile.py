"""`make test` runs every test once, however its parts are divided."""

import itertools
import re
from pathlib import Path

from _pytest.mark.expression import Expression

ROOT = Path(__file__).parents[1]
MARKERS = ("ray", "long")


def test_make_test_runs_each_test_that_is_not_slow_in_exactly_one_of_its_parts() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    recipes = dict(re.findall(r"^(\w+):(?:.*)\n((?:\t.*\n)+)", makefile, re.MULTILINE))
    (parts,) = re.findall(r"^test: (.*)$", makefile, re.MULTILINE)
    texts = [recipes[part] for part in ("test", *parts.split())]
    selections = [Expression.compile(one) for text in texts for one in re.findall(r'-m "([^"]+)"', text)]
    assert len(selections) > 1
    for is_marked in itertools.product((False, True), repeat=len(MARKERS)):
        marks = {name for name, is_on in zip(MARKERS, is_marked, strict=True) if is_on}
        run_in = [one for one in selections if one.evaluate(lambda name, **_: name in marks)]  # noqa: B023
        assert len(run_in) == 1, marks
