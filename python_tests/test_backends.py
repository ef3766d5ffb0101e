"""Which backend runs: who is asked first, what an explicit choice does, and what is remembered."""

import threading
from contextlib import ExitStack
from types import SimpleNamespace

import fresh
import pytest
import torch

import lightkernels
from lightkernels import BackendUnavailable, explain, multi_dwconv2d, use_backend
from lightkernels._core import backends, plan
from lightkernels.ops.mldn_block import OP as BLOCK
from lightkernels.ops.mldn_block import cases as blocks
from lightkernels.ops.multi_dwconv2d import OP

NAMES = ("cuda", "cpu", "triton", "torch", "reference")
X, W = torch.randn(2, 3, 7, 5), torch.randn(3, 1, 3, 3)


def chosen(**kwargs):
    return explain("multi_dwconv2d", X, [W], **kwargs).chosen


def asked(**kwargs):
    return explain("multi_dwconv2d", X, [W], **kwargs).asked


def child(code, **variables):
    """What ``code`` prints as JSON in a process of its own."""
    start = "import json, torch, lightkernels\nfrom lightkernels import explain, multi_dwconv2d, use_backend\n"
    start += "x, w = torch.randn(2, 3, 7, 5), torch.randn(3, 1, 3, 3)\n"
    return fresh.run(start + code, **variables)


def test_the_first_call_imports_no_compiler():
    """Several branches without gradients: what is imported stays below what a call may take, half a second."""
    told = child(
        "import sys\nmulti_dwconv2d(x, [w, w, w])\n"
        "print(json.dumps([name for name in ('torch._dynamo', 'sympy') if name in sys.modules]))"
    )
    assert told == []


def test_contexts_nest_and_end():
    assert asked() == "auto"
    with use_backend("reference"):
        assert asked() == chosen() == "reference"
        with use_backend("torch"):
            assert asked() == chosen() == "torch"
            with use_backend("auto"):
                assert asked() == "auto"
            assert asked() == "torch"
        assert asked() == "reference"
    assert asked() == "auto"


def test_context_ends_with_an_error():
    with pytest.raises(KeyError), use_backend("reference"):
        raise KeyError
    assert asked() == "auto"


def test_argument_before_context():
    with use_backend("reference"):
        assert asked(backend="torch") == chosen(backend="torch") == "torch"
        assert asked(backend="auto") == "auto"
        assert asked() == "reference"


def test_environment_comes_last():
    told = child(
        """
told = [explain("multi_dwconv2d", x, [w]).chosen, explain("multi_dwconv2d", x, [w], backend="torch").chosen]
with use_backend("torch"):
    told.append(explain("multi_dwconv2d", x, [w]).chosen)
told.append(explain("multi_dwconv2d", x, [w]).chosen)
print(json.dumps(told))
""",
        LIGHTKERNELS_BACKEND="reference",
    )
    assert told == ["reference", "torch", "torch", "reference"]


def test_environment_is_as_strict_as_an_argument():
    told = child(
        """
told = []
for backend in (None, "torch"):
    try:
        told.append(list(multi_dwconv2d(x, [w], backend=backend).shape))
    except lightkernels.BackendUnavailable as error:
        told.append(str(error))
print(json.dumps(told))
""",
        LIGHTKERNELS_BACKEND="cpu",
        LIGHTKERNELS_DISABLE_NATIVE="1",
    )
    reason = "switched off by LIGHTKERNELS_DISABLE_NATIVE=1"
    assert told == [f"multi_dwconv2d: backend 'cpu' cannot run this call: {reason}", [2, 3, 7, 5]]


def test_a_user_without_a_home():
    hide = "import os, pwd\nos.environ.pop('HOME', None)\npwd.getpwuid = {}.__getitem__\n"
    told = fresh.run(hide + "import json, lightkernels\nprint(json.dumps(lightkernels.__version__))\n")
    assert told == lightkernels.__version__


def test_unknown_name_in_the_environment():
    told = child(
        """
try:
    multi_dwconv2d(x, [w])
except ValueError as error:
    print(json.dumps(str(error)))
""",
        LIGHTKERNELS_BACKEND="fast",
    )
    names = ", ".join(map(repr, backends.NAMES))
    assert told == f"LIGHTKERNELS_BACKEND: backend must be one of {names}; got 'fast'."


def test_explicit_choice_never_falls_back():
    """By argument and by context, also after the automatic choice ran the same call; on CPU tensors without Triton."""
    reason = explain("multi_dwconv2d", X, [W]).reasons["triton"]
    if reason is None:
        pytest.skip("Triton's interpreter runs this call")
    multi_dwconv2d(X, [W])
    for call in (lambda: multi_dwconv2d(X, [W], backend="triton"), lambda: forced("triton")):
        with pytest.raises(BackendUnavailable) as error:
            call()
        assert str(error.value) == f"multi_dwconv2d: backend 'triton' cannot run this call: {reason}"


def test_backend_that_the_operator_lacks(monkeypatch):
    monkeypatch.delitem(BLOCK.backends, "cuda")
    sample = blocks.CASES[0].build()

    def call(backend=None):
        return lightkernels.mldn_block(*sample.args, **sample.kwargs, backend=backend)

    with pytest.raises(BackendUnavailable, match=r"^mldn_block: backend 'cuda' is not implemented for this op"):
        call("cuda")
    with (
        use_backend("cuda"),
        pytest.raises(BackendUnavailable, match=r"^mldn_block: backend 'cuda' is not implemented"),
    ):
        call()


def forced(name):
    with use_backend(name):
        return multi_dwconv2d(X, [W])


STRICT = """
try:
    told = list(multi_dwconv2d(x, [w]).shape)
except lightkernels.BackendUnavailable as error:
    told = str(error)
print(json.dumps([told, list(multi_dwconv2d(x, [w], backend="torch").shape)]))
"""


def test_strict_refuses_the_fallback_but_not_a_choice():
    told, explicit = child(STRICT, LIGHTKERNELS_STRICT="1", LIGHTKERNELS_DISABLE_NATIVE="1")
    start = "multi_dwconv2d: LIGHTKERNELS_STRICT=1 and only backend 'torch' is left: "
    cuda = "cuda: the tensors are on cpu, not on a CUDA device; "
    assert told.startswith(start + cuda + "cpu: switched off by LIGHTKERNELS_DISABLE_NATIVE=1; triton: ")
    assert explicit == [2, 3, 7, 5]


LOGGED = """
import io, json, sys, torch
sys.stderr = io.StringIO()
import lightkernels
for _ in range(2):
    lightkernels.multi_dwconv2d(torch.ones(1, 1, 3, 3), [torch.ones(1, 1, 3, 3)])
print(json.dumps(sys.stderr.getvalue()))
"""


def test_a_fallback_is_told_once_where_the_log_level_asks_for_it():
    told = fresh.run(LOGGED, LIGHTKERNELS_LOG="INFO", LIGHTKERNELS_DISABLE_NATIVE="1")
    assert told.startswith("multi_dwconv2d runs on backend 'torch': cuda: ") and told.count("\n") == 1
    assert fresh.run(LOGGED, LIGHTKERNELS_DISABLE_NATIVE="1") == ""


def test_without_strict_the_fallback_runs():
    assert child(STRICT, LIGHTKERNELS_DISABLE_NATIVE="1") == [[2, 3, 7, 5]] * 2


def test_threads_choose_alone():
    inside, done = threading.Event(), threading.Event()
    seen = {}

    def other():
        seen["new"] = asked()
        with use_backend("reference"):
            inside.set()
            seen["waited"] = done.wait(60)
            seen["own"] = asked()

    with use_backend("torch"):
        thread = threading.Thread(target=other)
        thread.start()
        assert inside.wait(60)
        assert asked() == "torch"
        done.set()
        thread.join(60)
        assert asked() == "torch"
    assert seen == {"new": "auto", "waited": True, "own": "reference"}


class Fake:
    """A backend with a fixed answer."""

    def __init__(self, name, reason, turn=None):
        self.name, self.reason, self.turn = name, reason, turn

    def why_not(self, spec):
        return self.reason

    def yields(self, spec, kind):
        return self.turn


def test_choice_is_the_first_that_can():
    table = {n: Fake(n, r) for n, r in (("cpu", "too small"), ("triton", None), ("torch", None))}
    choice = backends.choose("op", table, None, "auto")
    assert choice.backend is table["triton"]
    assert choice.reasons == {"cpu": "too small"}


def test_a_backend_that_yields_runs_only_when_asked_for():
    table = {n: Fake(n, None, t) for n, t in (("cuda", "not measured"), ("triton", None))}
    assert backends.choose("op", table, None, "auto").reasons == {"cuda": "not measured"}
    assert backends.choose("op", table, None, "cuda").backend is table["cuda"]


def test_automatic_choice_does_without_what_was_never_timed(monkeypatch):
    """On a CUDA device; an entry for calls like it says what was fastest there. An explicit choice takes it anyway."""
    spec = SimpleNamespace(device="cuda", tuned_by=("c",), c=8)
    monkeypatch.setattr(backends.tuning, "device_name", lambda device: "sm90-X")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(backends.Backend, "why_not", lambda self, spec: None)
    table = {n: backends.Backend(n, "lightkernels.ops.rsdc2d") for n in ("triton", "torch")}
    entries = [{"pass": "triton fwd", "key": {"c": 8}, "config": {"warps": 4}, "source": ""}]
    monkeypatch.setattr(backends.tuning, "entries", lambda op, device: tuple(entries if op == "rsdc2d" else ()))
    choice = backends.choose("rsdc2d", table, spec, "auto")
    assert choice.backend is table["torch"]
    never = "never timed near this size on sm90-X (`lightkernels tune`); backend='triton' takes it"
    assert choice.reasons == {"triton": never}
    assert backends.choose("rsdc2d", table, spec, "triton").backend is table["triton"]
    entries.append({"pass": "auto bwd_x", "key": {"c": 16}, "config": {"backend": "triton"}, "source": ""})
    assert backends.choose("rsdc2d", table, spec, "auto").backend is table["torch"]
    assert backends.choose("rsdc2d", table, spec, "auto", "bwd_x").backend is table["triton"]
    entries.clear()
    assert table["triton"].yields(SimpleNamespace(device="cpu")) is None


def test_no_backend_is_left():
    table = {n: Fake(n, f"not {n}") for n in ("cpu", "reference")}
    with pytest.raises(BackendUnavailable) as error:
        backends.choose("op", table, None, "auto")
    assert str(error.value) == "op: no backend can run this call: cpu: not cpu; reference: not reference"


def test_explicit_choice_gives_its_own_reason():
    table = {n: Fake(n, r) for n, r in (("cpu", "too small"), ("torch", None))}
    with pytest.raises(BackendUnavailable) as error:
        backends.choose("op", table, None, "cpu")
    assert str(error.value) == "op: backend 'cpu' cannot run this call: too small"


def test_fallback_is_logged_once(caplog, monkeypatch):
    monkeypatch.setattr(backends, "_told", set())
    table = {n: Fake(n, r) for n, r in (("cpu", "too small"), ("torch", None))}
    with caplog.at_level("INFO", logger="lightkernels"):
        for _ in range(3):
            backends.choose("op", table, None, "auto")
    assert [r.getMessage() for r in caplog.records] == ["op runs on backend 'torch': cpu: too small"]


@pytest.mark.parametrize(
    ("error", "name", "text"),
    [
        (ValueError, "gpu", f"must be one of {', '.join(map(repr, backends.NAMES))}; got 'gpu'."),
        (ValueError, "", f"must be one of {', '.join(map(repr, backends.NAMES))}; got ''."),
        (TypeError, 3, "must be a string; got 3."),
    ],
)
def test_unknown_names(error, name, text):
    for where, call in (
        ("multi_dwconv2d", lambda: multi_dwconv2d(X, [W], backend=name)),
        ("use_backend", lambda: ExitStack().enter_context(use_backend(name))),
    ):
        with pytest.raises(error) as raised:
            call()
        assert str(raised.value) == f"{where}: backend {text}"
    assert asked() == "auto"


def test_explanation_names_every_backend():
    told = explain(multi_dwconv2d, X, [W], backend="reference")
    lines = str(told).splitlines()
    assert lines[0] == "multi_dwconv2d: reference (asked for: reference)"
    assert tuple(told.reasons) == tuple(OP.backends) == NAMES
    marks = dict(line.split(None, 1) for line in lines[1:])
    assert marks["reference"] == "chosen"
    assert marks["torch"] == "could run"
    for name in ("cuda", "cpu", "triton"):
        assert marks[name] == (told.reasons[name] or "could run")
    assert marks["layout"] == "nchw, no copy"


@pytest.mark.parametrize("form", ["pixels, channels last", "one column of many"])
def test_the_stride_of_one_column_is_no_reason_to_copy(form):
    x = torch.randn(2, 1, 1, 3).permute(0, 3, 1, 2)
    if form == "one column of many":
        x = torch.randn(2, 3, 5, 7).mT[..., 2:3]
    assert x.stride(3) != 1
    if explain("multi_dwconv2d", X, [W]).chosen != "cpu":
        pytest.skip("no native core")
    assert explain("multi_dwconv2d", x, [W]).copies is None
    g = torch.randn(2, *x.shape[2:], 3).permute(0, 3, 1, 2)
    results = []
    for backend in ("cpu", "reference"):
        leaves = (x.detach().requires_grad_(), W.clone().requires_grad_())
        y = multi_dwconv2d(leaves[0], [leaves[1]], backend=backend)
        results.append([y.detach(), *torch.autograd.grad(y, leaves, g)])
    torch.testing.assert_close(*results)


def test_explanation_of_a_call_that_cannot_run():
    told = explain("multi_dwconv2d", X, [W], backend="cuda")
    assert told.chosen is None
    assert str(told).splitlines()[0] == "multi_dwconv2d: no backend (asked for: cuda)"


def test_explain_knows_its_operators():
    with pytest.raises(
        ValueError,
        match=r"^explain: op must be one of condensed_conv2d, mldn_block, multi_dwconv2d, rsdc2d; got 'conv'$",
    ):
        explain("conv", X)


def test_memo_is_bounded():
    memo = plan.Memo()
    for i in range(plan.LIMIT):
        assert memo.put(i, i) == i
    assert len(memo) == plan.LIMIT
    assert memo.get(0) == 0
    memo.put("one more", "plan")
    assert len(memo) == 1
    assert memo.get("one more") == "plan"
    assert memo.get(0) is None
    for i in range(3 * plan.LIMIT):
        memo.put(i, i)
        assert len(memo) <= plan.LIMIT
    assert memo.get(i) == i


def test_equal_calls_share_a_plan():
    OP._memo.clear()
    for _ in range(3):
        multi_dwconv2d(X, [W])
    assert len(OP._memo) == 1
    multi_dwconv2d(X, [W], backend="torch")
    with use_backend("torch"):
        multi_dwconv2d(X, [W])
    multi_dwconv2d(X[:1], [W])
    assert len(OP._memo) == 4
