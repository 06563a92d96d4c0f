"""Weights, tokens and routing that every contender is given, and the layer they are compared with."""

import math

import numpy

SEED = 20260101


def to_bf16(values):
    """Bits of the nearest bf16 values, ties to even."""
    bits = values.view(numpy.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(numpy.uint16)


def from_bf16(bits):
    return (bits.astype(numpy.uint32) << 16).view(numpy.float32)


def write_weights(folder, shape, sets):
    """Normal weights of variance 1 / length, as bf16."""
    experts, hidden, inter = shape["experts"], shape["hidden"], shape["inter"]
    for n in range(sets):
        generator = numpy.random.default_rng([SEED, experts, n])
        for name, rows, length in [("w13", 2 * inter, hidden), ("w2", hidden, inter)]:
            with open(folder / f"{name}.{n}.bf16", "wb") as file:
                for _ in range(experts):
                    values = generator.standard_normal((rows, length), dtype=numpy.float32)
                    to_bf16(values / numpy.float32(math.sqrt(length))).tofile(file)


def write_input(folder, shape, tokens):
    """Normal activations; the softmax of the top_k largest of normal logits. Returns them."""
    generator = numpy.random.default_rng([SEED, shape["experts"], tokens, 7])
    x = to_bf16(generator.standard_normal((tokens, shape["hidden"]), dtype=numpy.float32))
    logits = generator.standard_normal((tokens, shape["experts"]), dtype=numpy.float32)
    ids = numpy.argsort(-logits, axis=1, kind="stable")[:, : shape["top_k"]].astype(numpy.int32)
    chosen = numpy.take_along_axis(logits, ids, axis=1)
    weights = numpy.exp(chosen - chosen.max(axis=1, keepdims=True))
    weights = (weights / weights.sum(axis=1, keepdims=True)).astype(numpy.float32)
    for name, values in [("x.bf16", x), ("logits.f32", logits), ("ids.i32", ids), ("weights.f32", weights)]:
        values.tofile(folder / name)
    return from_bf16(x), ids, weights


def reference(folder, shape, x, ids, weights):
    """The layer in single precision, expert by expert."""
    hidden, inter = shape["hidden"], shape["inter"]
    w13 = numpy.memmap(folder / "w13.0.bf16", numpy.uint16, "r", shape=(shape["experts"], 2 * inter, hidden))
    w2 = numpy.memmap(folder / "w2.0.bf16", numpy.uint16, "r", shape=(shape["experts"], hidden, inter))
    out = numpy.zeros_like(x)
    for expert in numpy.unique(ids):
        tokens, slots = numpy.nonzero(ids == expert)
        gate, up = numpy.split(x[tokens] @ from_bf16(w13[expert]).T, 2, axis=1)
        rows = (gate / (1 + numpy.exp(-gate)) * up) @ from_bf16(w2[expert]).T
        out[tokens] += weights[tokens, slots, None] * rows
    return out
