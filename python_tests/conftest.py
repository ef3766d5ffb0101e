"""Options, seeds, poisoned memory, the generated tests, and the tier that runs by default."""

import gc
import os
import warnings
import zlib

# Test processes share the cores: a team of threads that waits must sleep, not spin. Read when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest
import torch

from checks.target import OPS, generate, targets
from lightkernels.testing import poisoned

with warnings.catch_warnings():
    # torch loads this at the first forward-mode call, and warns of its own use of torch.jit.script.
    warnings.simplefilter("ignore")
    import torch._decomp.decompositions_for_jvp
    import torch._dynamo

# Before any test patches a function of torch: the compiler's table of torch's functions is made once, by identity.
torch._dynamo.trace_rules.get_torch_obj_rule_map()


def pytest_addoption(parser):
    parser.addoption("--ops", default=OPS, help="the package whose operators the generated suite runs")
    parser.addoption("--backends", default=None, help="comma-separated: only these backends in the generated suite")


def pytest_generate_tests(metafunc):
    if "check" not in metafunc.fixturenames:
        return
    config = metafunc.config
    where = targets(config.option.ops)
    cuda = torch.cuda.is_available()
    if cuda:
        where += targets(config.option.ops, "cuda")
    if config.option.backends:
        wanted = config.option.backends.split(",")
        where = [t for t in where if t.backend in wanted]
    checks = list(generate(metafunc.module.THEME, where))
    params = [
        pytest.param(c, id=c.id, marks=[*c.kind.marks, *([pytest.mark.gpu] if c.target.device == "cuda" else [])])
        for c in checks
    ]
    if not cuda:
        count = sum(c.target.backend == "reference" for c in checks)
        params.append(pytest.param(None, id=f"cuda-at-least-{count}", marks=pytest.mark.gpu))
    metafunc.parametrize("check", params)


def pytest_collection_finish(session):
    """Thousands of tests are no garbage, and are not looked through again and again."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def pytest_collection_modifyitems(config, items):
    """Without -m: slow tests are left out. Without a CUDA device: gpu tests skip, counted."""
    if not config.option.markexpr:
        slow = [item for item in items if item.get_closest_marker("slow")]
        if slow:
            config.hook.pytest_deselected(items=slow)
            items[:] = [item for item in items if not item.get_closest_marker("slow")]
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def seed(request):
    """Every test's own seed, printed if it fails."""
    value = zlib.crc32(request.node.nodeid.rpartition("::")[2].encode())
    torch.manual_seed(value)
    request.node.add_report_section("setup", "seed", str(value))
    return value


@pytest.fixture(autouse=True)
def poison():
    with poisoned():
        yield


@pytest.fixture
def caught(record_property):
    """Where a test of a planted bug says which kinds of check saw it."""
    kinds = []
    yield kinds
    if kinds:
        record_property("caught", kinds)


def pytest_terminal_summary(terminalreporter, config):
    # Reports come from several processes; what a test recorded after its call is in that of its teardown.
    reports = [r for group in terminalreporter.stats.values() for r in group if hasattr(r, "user_properties")]
    caught = {r.nodeid: kinds for r in reports for name, kinds in r.user_properties if name == "caught"}
    if caught and config.option.verbose >= 0:
        terminalreporter.section("planted bugs and what saw them")
        for node, kinds in sorted(caught.items()):
            terminalreporter.write_line(f"{node.partition('[')[2].rstrip(']')}: {', '.join(kinds)}")
