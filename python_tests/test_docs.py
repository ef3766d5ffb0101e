"""What the documentation shows runs, and what it links to exists."""

import doctest
import re
import runpy
import textwrap
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import lightkernels
from lightkernels import functional

ROOT = Path(__file__).parents[1]
NAMES = {
    "torch": torch,
    "F": F,
    "lightkernels": lightkernels,
    **{n: getattr(functional, n) for n in functional.__all__},
}
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "benchmarks").glob("*.md")]


def two_branches():
    """Tensors and values that the "Equivalent to" of multi_dwconv2d speaks of."""
    weights = [torch.randn(4, 1, k, k) for k in (3, 5)]
    return {"x": torch.randn(2, 4, 9, 8), "weights": weights, "stride": 2, "dilations": (2, 1)}


def a_set_a_group():
    taps = torch.stack([torch.randperm(25)[:9] for _ in range(2)])
    x, weight, bias = torch.randn(2, 6, 9, 8), torch.randn(4, 3, 9), torch.randn(4)
    values = {"kernel_size": 5, "stride": 2, "dilation": 2, "groups": 2}
    return {"x": x, "weight": weight, "taps": taps, "bias": bias, **values}


def a_small_block():
    norms = {f"affine{i + 1}": torch.randn(2, n) for i, n in enumerate((2 * (2 + 4), 2 * 2 * 8))}
    values = {"num_layers": 2, "paths": 2, "growth": 4, "groups": 2}
    weights = {"weight1": torch.randn(8 * 2 * (2 + 4)), "weight3": torch.randn(2 * 2 * 2 * 4 * 9)}
    return {"x": torch.randn(2, 4, 6, 5), **weights, **norms, **values}


def two_groups():
    tensors = {"x": torch.randn(2, 8, 5, 4), "weight": torch.randn(6, 3), "index": torch.randint(8, (2, 3))}
    return {**tensors, "scale": torch.randn(6), "shift": torch.randn(6)}


ARGUMENTS = {
    "condensed_conv2d": two_groups,
    "mldn_block": a_small_block,
    "multi_dwconv2d": two_branches,
    "rsdc2d": a_set_a_group,
}


@pytest.mark.parametrize("name", functional.__all__)
def test_examples_of_functions(name):
    (test,) = doctest.DocTestFinder(recurse=False).find(
        getattr(functional, name), name, module=False, globs=dict(NAMES)
    )
    result = doctest.DocTestRunner().run(test)
    assert result.attempted > 0 and result.failed == 0


@pytest.mark.parametrize("name", functional.__all__)
def test_functions_equal_what_they_say(name):
    function, arguments = getattr(functional, name), ARGUMENTS[name]()
    (code,) = re.findall(r"^ *Equivalent to::\n\n(.*?)\n\n", function.__doc__, re.S | re.M)
    torch.testing.assert_close(function(**arguments), eval(textwrap.dedent(code), {**NAMES, **arguments}))


def test_readme():
    blocks = re.findall(r"(Equivalent to:\n\n)?```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    names = {"F": F}
    compared = 0
    for equivalent, code in blocks:
        if equivalent:
            torch.testing.assert_close(names["y"], eval(code, names))
            compared += 1
        else:
            exec(code, names)
    assert compared == 1 and len(blocks) >= 2
    assert all(w.grad is not None for w in names["weights"])


def rsdc2d(names, out):
    assert names["y"].shape == (2, 4, 16, 16)
    assert out.startswith("1 of 3 layers changed\n")


def compress(names, out):
    assert "18 of 68 layers" in out
    assert names["small"](names["images"]).shape == (16, 10)


def mldn_block(names, out):
    assert out == "True\n"


SHOWN = {"rsdc2d.md": rsdc2d, "compress.md": compress, "mldn_block.md": mldn_block}
WITH_CODE = [page for page in PAGES if page.parent.name == "docs" and "```python" in page.read_text()]


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.name)
def test_the_code_of_a_page(page, capsys):
    names = {}
    for code in re.findall(r"```python\n(.*?)```", page.read_text(), re.S):
        exec(code, names)
    SHOWN.get(page.name, lambda names, out: None)(names, capsys.readouterr().out)


def test_pages_whose_output_is_known_have_code():
    assert set(SHOWN) <= {page.name for page in WITH_CODE}


def test_the_receptive_field_grows_with_the_window(tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib")
    picture = tmp_path / "field.png"
    monkeypatch.setattr("sys.argv", ["receptive_field.py", "--trials", "2", "--out", str(picture)])
    runpy.run_path(str(ROOT / "docs" / "receptive_field.py"), run_name="__main__")
    sides = [int(side) for side in re.findall(r"square of (\d+)", capsys.readouterr().out)]
    assert sides[0] < sides[1] < sides[2] and picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links(page):
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    files = [link.partition("#")[0] for link in links if not re.match(r"\w+:|#", link)]
    assert page.name != "README.md" or page.parent != ROOT or "docs/environment.md" in files
    assert [file for file in files if not (page.parent / file).exists()] == []
