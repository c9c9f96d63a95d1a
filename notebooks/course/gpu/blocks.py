"""Small pieces of code, each captured in a CUDA graph and on the tape of chapter 06: who permits what?

They are the rows of the tape's own table of verdicts (``course.graph_table``), more lines, and whole steps of every
variant. A line of ``LINES`` runs with the names of ``things``. A comment after two spaces says how to judge it:
``# random``, contents are not compared; ``# differs: why``, the tape is known to judge otherwise. What is stored of
each: the verdict, the message, whether the capture was kept after an error that was caught, and what the tensors that
have changed hold after three replays, between which x, y and the host's h change.
"""

import contextlib
import functools
import importlib
import importlib.util
import math
from collections.abc import Callable

import torch

import adamlib
from course import graph_table
from course.benchmark import torch_takes_capturable_anywhere
from course.gpu.run import attempt, one_line
from course.graph_tape import GraphTape, device_tensors
from course.op_meter import tensors_in

LINES = """
x.sum().item()
print(x.sum())
"large" if x.sum() > 1 else "small"
torch.where(x.sum() > 1, x, -x)
x[x > 0]
x.masked_fill(x > 0, 0.0)
x * torch.tensor(2.0)
x * torch.tensor([1.0, 2.0, 3.0, 4.0])
x.clamp(max=x.mean())
torch.nn.utils.clip_grad_norm_([w], 1.0)
torch.nn.utils.clip_grad_norm_([w], 1.0, error_if_nonfinite=True)
torch.rand_like(x)  # random
bool(x.any())
int(i[0])
float(x.sum())
x.tolist()
x.cpu()
x.to("cpu")  # differs: on a CPU this is no call
x.numpy()
f"{x.sum():.3f}"
torch.equal(x, y)
torch.allclose(x, y)
torch.isfinite(x).all()
x[i[0]]
x[i]
x[:2].add_(1)
x.masked_fill(m, x.mean())
x.masked_fill(m, h)
x.masked_fill(m, hv)
x[m]
x[m] = 2.0
x[m] = h
x[m] = x.mean()
x[i] = y
x.index_put_((i,), y, accumulate=True)
x.index_add_(0, i, y)
x.scatter_(0, i, y)
torch.where(m)
torch.where(m, 1.0, x)
torch.where(m, h, x)
x.nonzero()
x.masked_select(m)
torch.unique(i)
torch.bincount(i)
torch.repeat_interleave(x, 2)
torch.repeat_interleave(x, i)
torch.repeat_interleave(x, i, output_size=6)
torch.nn.functional.one_hot(i)
torch.nn.functional.one_hot(i, 4)  # differs: the CPU's kernel asks the host for the values
torch.tensor(2.0, device=x.device)
torch.tensor(2.0).to(x.device)  # differs: on a CPU this is no call
x.new_tensor(2.0)
x.copy_(torch.tensor(2.0))
x.copy_(hv)
x.copy_(pinned, non_blocking=True)  # differs: a CPU alone has no pinned memory
x.copy_(y)
x.fill_(h)
x.fill_(y[0])
torch.full((4,), 2.0, device=x.device)
torch.full((4,), y[0], device=x.device)
torch.full_like(x, 2.0)
torch.zeros_like(x)
torch.arange(4, device=x.device)
z = torch.empty(4, device=x.device); x.copy_(z)
z = torch.empty_like(x); z.copy_(x); z.add_(y)
x.add_(y, alpha=2)
x.add_(y, alpha=h)
x.add_(y, alpha=y[0])
x.add_(h)
h.add_(x.sum())
x.addcmul_(x, y, value=y[0])
x.addcdiv_(x, y, value=0.5)
x.lerp_(y, 0.5)
x.lerp_(y, h)
x.lerp_(y, y[0] * 0.1)
x.clamp(min=h)
y.pow(h)
y.div_(y.norm())
torch.stack([x[0], h])
torch.cat([x, hv])
x.sort()
x.topk(2)
x.cumsum(0)
x.median()
x.quantile(0.5)
x.std()
torch.histc(x, 4, -4.0, 8.0)
a @ a
torch.linalg.inv(a)
torch.linalg.inv_ex(a)
torch.linalg.solve(a, a)
torch.linalg.cholesky(a)
torch.linalg.eigh(a)
torch.linalg.svd(a)
torch.linalg.det(a)
torch.nn.functional.cross_entropy(a, i[:3] % 3)
torch.nn.functional.embedding(i % 3, a)
torch.nn.functional.layer_norm(a, (3,))
torch.nn.functional.scaled_dot_product_attention(a[None], a[None], a[None])
torch.nn.functional.dropout(x)  # random
torch.randperm(4, device=x.device)  # random
torch.multinomial(y.abs(), 1)  # random
x.normal_()  # random
torch.randn(4, device=x.device, generator=g)  # random  # differs: the tape's CPU generator needs no registration
(w * x).sum().backward()
torch.autograd.grad((w * x).sum(), w)
w.grad.zero_()
with torch.autocast(x.device.type, torch.bfloat16): z = a @ a
torch._assert_async(y.abs().sum() > 0)
torch._foreach_add_([x, y], 1.0)
torch._foreach_norm([x, y])
torch._foreach_mul_([x, y], h)
torch._foreach_mul_([x, y], y[0] * 0 + 2)
torch._foreach_mul_([x, y], [2.0, 0.5])
torch._foreach_addcdiv_([x], [y], [y], torch.tensor([2.0]))
torch._foreach_addcdiv_([x], [y], [y], y[:1])
torch._foreach_copy_([x], [hv])
torch.save(x, io.BytesIO())  # differs: on a CPU this is no call
"""
REPLAYS = 3
FORMS = {
    "foreach=False": dict(foreach=False),
    "foreach=True": dict(foreach=True),
    "fused=True": dict(fused=True),
    "foreach=False, capturable=True": dict(foreach=False, capturable=True),
    "foreach=True, capturable=True": dict(foreach=True, capturable=True),
    "fused=True, capturable=True": dict(fused=True, capturable=True),
}
TRITON = {'fused="triton", capturable=True': dict(fused="triton", capturable=True)}


def lines() -> dict[str, str]:
    """The pieces of code, each with the remark on how to judge it."""
    parted = (line.partition("  # ") for line in LINES.strip().splitlines())
    return {code: remark for code, _, remark in parted}


def rows() -> dict:
    """The rows of the tape's table by name."""
    return {f"row: {row.name}": row for row in graph_table.TABLE}


def row_block(row, device: str) -> tuple[dict, Callable, Callable]:
    """A row's block, with its x on the device and its h on the host."""
    x, h = torch.tensor([1.0, -2.0, 3.0, 0.5], device=device), torch.ones(4)

    def change():
        x.mul_(1.5), h.add_(10)  # x keeps its signs, of which some rows count the positive ones

    return {"x": x}, lambda: row.block(x, h), change


def things(device: str) -> dict:
    """What the lines work on, by name. On the device: x, y, a, i, m, c and the parameter w; on the host: h, hv."""
    tensor = functools.partial(torch.tensor, device=device)
    w = tensor([1.0, 2.0, 3.0, 4.0], requires_grad=True)
    w.grad = torch.ones_like(w, requires_grad=False)
    hv = torch.tensor([1.0, 2.0, 3.0, 4.0])
    return dict(
        x=tensor([1.0, -2.0, 3.0, 0.5]), y=tensor([4.0, 3.0, 2.0, 1.0]), w=w, i=tensor([0, 2, 1, 3]),
        a=tensor([[4.0, 1.0, 0.0], [1.0, 3.0, 1.0], [0.0, 1.0, 2.0]]), m=tensor([True, False, True, False]),
        h=torch.tensor(2.0), hv=hv, pinned=hv.pin_memory() if device == "cuda" else hv.clone(),
        g=torch.Generator(device), torch=torch, io=importlib.import_module("io"),
    )  # fmt: skip


def line(code: str, device: str) -> tuple[dict, Callable, Callable]:
    """The device tensors by name, the code as a function that returns its value (or its z), and a change of inputs."""
    names = things(device)
    tensors = {name: names[name] for name in "xywaim"} | {"w.grad": names["w"].grad}

    def block():
        names["x"].mul_(1)  # a launch in any case: an empty capture is a matter of its own
        try:
            value = compile(code, "block", "eval")
        except SyntaxError:
            exec(compile(code, "block", "exec"), names)
            return names.get("z")
        return eval(value, names)

    @torch.no_grad()
    def change():
        names["x"].add_(1), names["y"].mul_(2), names["h"].add_(10)

    return tensors, block, change


def step(library: str, form: str, lr_as: str, whole: bool, device: str) -> tuple[dict, Callable, Callable]:
    """A step of Adam on two tensors, after one that made its state; ``whole`` with a forward and a backward pass."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 4, generator=generator).to(device)
    params = [torch.randn(shape, generator=generator).to(device).requires_grad_() for shape in ((4, 5), (5,))]
    lr = torch.tensor(0.01, device=device) if lr_as == "tensor" else 0.01
    cls = {"torch": torch.optim.Adam, "adamlib": adamlib.Adam}[library]
    optimizer = cls(params, lr=lr, weight_decay=0.1, amsgrad=True, **(FORMS | TRITON)[form])

    def backward():
        (x @ params[0] + params[1]).square().mean().backward()

    def whole_step():
        backward(), optimizer.step(), optimizer.zero_grad()

    backward(), optimizer.step()
    if whole:
        optimizer.zero_grad()
    tensors = device_tensors(optimizer) | {"x": x}

    def change():
        x.add_(1)
        for tensor in (p.grad for p in params if p.grad is not None):
            tensor.add_(0.5)
        if lr_as == "tensor":
            optimizer.param_groups[0]["lr"].mul_(0.5)

    return tensors, whole_step if whole else optimizer.step, change


def steps(device: str) -> dict[str, Callable]:
    """Whole steps by name; the Triton kernel where it can run."""
    triton = device == "cuda" and importlib.util.find_spec("triton")
    made = {}
    for library in ("torch", "adamlib"):
        for form in FORMS | (TRITON if triton and library == "adamlib" else {}):
            capturable = "capturable" in form
            for lr_as, whole in [("float", False), *[("tensor", False), ("tensor", True)] * capturable]:
                name = f"step of {library}, {form}, lr a {lr_as}" + ", with its backward pass" * whole
                made[name] = functools.partial(step, library, form, lr_as, whole)
    return made


def remarks(device: str) -> dict[str, str]:
    """All blocks, each with the remark on how to judge it."""
    plain = "differs: torch and adamlib refuse to be captured; the tape lets them in, to show why"
    found = {name: "" if "capturable" in name else plain for name in steps(device)}
    for name, row in rows().items():
        random = "random" * any(word in name for word in ("random", "multinomial", "generator"))
        found[name] = random + "differs: by the table" * (row.tape is not None)
    return lines() | found


def maker(name: str, device: str) -> Callable:
    """What makes a block by its name: a function of the device that returns its tensors, the block, and a change."""
    if name in rows():
        return functools.partial(row_block, rows()[name])
    return steps(device).get(name) or functools.partial(line, name)


def observe(name: str, device: str) -> dict:
    """What happens to the block when it is captured, on CUDA or (device "cpu") on the tape, and replayed."""
    make = maker(name, device)
    with torch_takes_capturable_anywhere() if device == "cpu" else contextlib.nullcontext():
        eager = attempt(lambda: _aside(make(device)[1], device) or {})
        made = []
        _aside(lambda: made.extend(make(device)), device)  # with the first step of an optimizer
        tensors, block, change = made
        before = {name: _numbers(tensor) for name, tensor in tensors.items()}
        seen = _capture(tensors, block, device)
        graph, result = seen.pop("graph"), seen.pop("result")
        seen["eager"] = eager.get("error", "runs")
        if graph is not None:
            seen |= attempt(lambda: {"contents": _replayed(graph, tensors, result, change)})
            held = seen.get("contents", {})
            seen |= {"contents": {name: held[name] for name in held if held[name] != before.get(name)}} if held else {}
    return seen


def _aside(block: Callable, device: str) -> None:
    """Call it, on CUDA on a side stream: there libraries make what they need before a capture."""
    if device == "cpu":
        block()
        return
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        block()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()


def _capture(tensors: dict, block: Callable, device: str) -> dict:
    """Verdict and message. An error in the block is caught inside the capture: is the capture lost all the same?"""
    inside = outside = result = None
    graph = GraphTape(tensors) if device == "cpu" else torch.cuda.CUDAGraph()
    stream = None if device == "cpu" else torch.cuda.current_stream()
    try:
        with graph.capture() if device == "cpu" else torch.cuda.graph(graph):
            try:
                result = block()
            except Exception as error:
                inside = error
    except Exception as error:
        outside = error
    finally:
        if stream is not None:
            torch.cuda.set_stream(stream)  # a capture that fails at its end does not go back to it
    if inside is None and outside is None:
        return {"verdict": "permitted", "graph": graph, "result": result}
    seen = {"verdict": "refused", "message": one_line(inside or outside), "graph": None, "result": None}
    return seen | {"capture": "kept" if outside is None else "lost"}


def _replayed(graph, tensors: dict, result, change: Callable) -> dict:
    """What all tensors hold in the end. What the block returned is overwritten before each replay."""
    results = {f"result {i}": tensor for i, tensor in enumerate(tensors_in(result))}
    for _ in range(REPLAYS):
        with torch.no_grad():
            change()
            for tensor in results.values():
                if tensor.is_floating_point() and tensor.is_contiguous() and not any(tensor is t for t in tensors.values()):
                    tensor.detach().fill_(7)
        graph.replay()
    return {name: _numbers(tensor) for name, tensor in (tensors | results).items()}


def _numbers(tensor: torch.Tensor) -> list:
    """At most six elements, floating-point numbers with six digits, what JSON has no word for as text."""
    values = tensor.detach().flatten()[:6].tolist()
    return [
        value if isinstance(value, (bool, int)) else float(f"{value:.6g}") if math.isfinite(value) else str(value)
        for value in values
    ]


def same_contents(one: dict, other: dict) -> bool:
    """Whether the two hold the same names and numbers, these to a ten-thousandth."""
    def close(a, b):
        numbers = isinstance(a, (int, float)) and isinstance(b, (int, float))
        return math.isclose(a, b, rel_tol=1e-4, abs_tol=1e-5) if numbers else a == b

    return one.keys() == other.keys() and all(
        len(one[name]) == len(other[name]) and all(map(close, one[name], other[name])) for name in one
    )


def wrong_rows(results: dict[str, dict]) -> list[str]:
    """The rows of the tape's table that say something else than CUDA was seen to do, a sentence each."""
    found = []
    for name, row in rows().items():
        cuda = results.get(name, {}).get("cuda", {})
        if "verdict" not in cuda or row.verdict == "not known":
            continue
        if row.verdict.partition(":")[0] != cuda["verdict"]:
            found.append(f"{name}: {cuda['verdict']} by CUDA, {row.verdict} by the table")
        elif cuda["verdict"] == "refused" and (row.verdict == "refused: host sync") != (cuda["capture"] == "lost"):
            found.append(f"{name}: after the error the capture was {cuda['capture']}, {row.verdict} by the table")
    return found


def disagreements(results: dict[str, dict], differs: bool = False) -> list[str]:
    """Where today's tape does not do what CUDA was seen to do, a sentence each; ``differs``: those we know of instead.

    results: of this part, from a record, each with what "cuda" did.
    """
    known, found = remarks("cpu"), []
    for name, result in results.items():
        cuda = result.get("cuda")
        if name not in known or cuda is None or "verdict" not in cuda or ("differs" in known[name]) != differs:
            continue
        tape = observe(name, "cpu")
        if cuda["verdict"] != tape["verdict"]:
            found.append(f"{name}: {cuda['verdict']} by CUDA, {tape['verdict']} by the tape")
        elif "contents" in cuda and "random" not in known[name]:
            if not same_contents(cuda["contents"], tape.get("contents", {})):
                found.append(f"{name}: other contents after {REPLAYS} replays")
    return found


def healthy() -> bool:
    """Whether this process can still compute, draw and capture on CUDA after a capture that was lost."""
    try:
        torch.cuda.synchronize()
        x = torch.ones(2, device="cuda")
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            x.add_(1)
            torch.rand(2, device="cuda")
        graph.replay()
        torch.rand(2, device="cuda")
        return x.tolist() == [2.0, 2.0]
    except Exception:
        return False


def run(done: set[str], device: str, tell) -> bool:
    for name in remarks(device):
        if name in done:
            continue
        tell(name)
        sides = ["cuda"] * (device == "cuda") + ["tape"] * ("triton" not in name)
        result = {side: attempt(lambda: observe(name, "cpu" if side == "tape" else "cuda")) for side in sides}
        on_cuda, on_tape = (result.get(side, {}).get("contents") for side in ("cuda", "tape"))
        if on_cuda and on_tape and same_contents(on_cuda, on_tape):
            result["tape"]["contents"] = "as in the CUDA graph"
        tell(name, result)
        if device == "cuda" and result["cuda"].get("verdict") != "permitted" and not healthy():
            return False  # in a new process
    return True
