"""The kernels of a table's improvement, in Triton; imported only where there is something to run them on.

An improvement reads P once, and everything else it does must not take time beside that: one kernel for the payoff,
one for the closed form; and one between two recorded steps.
"""

# Triton's own compiler reads these functions; to a type checker their values are anything.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownParameterType=false
# pyright: reportMissingParameterType=false, reportMissingImports=false, reportUnknownArgumentType=false
# pyright: reportUntypedFunctionDecorator=false, reportMissingTypeStubs=false

import triton
import triton.language as tl

__all__ = ["carry", "matrix_times_vector", "reverse_kl"]


# Numbers are not specialised: a batch of another size must not wait for the compiler.
@triton.jit(do_not_specialize=["rows", "column_units", "blocks", "programs", "backwards"])
def matrix_times_vector(
    matrix,
    vector,
    out,
    rows,
    column_units,
    blocks,
    programs,
    backwards,
    ALIGN: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    PARTS: tl.constexpr,
):
    """out[g, i] = sum over j of matrix[g, i, j] vector[g, j]; a program does BLOCK_ROWS rows of one game.

    `column_units * ALIGN` columns: so the compiler knows what divides a row, and loads several entries at once.
    `backwards` takes the programs in the other order: what the last call read last is still in the cache.
    """
    program = tl.program_id(0)
    program += backwards * (programs - 1 - 2 * program)
    game = (program // blocks).to(tl.int64)
    columns = column_units * ALIGN
    row = (program % blocks) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    column = tl.arange(0, BLOCK_COLUMNS)
    start = (game * rows + row.to(tl.int64)) * columns
    entries = matrix + start[:, None] + column[None, :]
    weights = vector + game * columns + column
    inside = row < rows
    sums = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), dtype=out.dtype.element_ty)
    for part in range(PARTS):
        first = part * BLOCK_COLUMNS
        here = first + column < columns
        weight = tl.load(weights + first, mask=here, other=0.0)
        entry = tl.load(entries + first, mask=inside[:, None] & here[None, :], other=0.0)
        sums += entry * weight[None, :]
    total = tl.sum(sums, axis=1)
    tl.store(out + game * rows + row, total, mask=inside)


@triton.jit
def _number(bits, dtype):
    # A Python float would arrive as a float32.
    return bits.to(tl.int64).to(tl.float64, bitcast=True).to(dtype)


@triton.jit(
    do_not_specialize=[
        "games",
        "size",
        "first_stride",
        "second_stride",
        "third_stride",
        "inverse",
        "first_share",
        "second_share",
        "third_share",
    ]
)
def reverse_kl(
    payoff,
    first,
    second,
    third,
    out,
    games,
    size,
    first_stride,
    second_stride,
    third_stride,
    inverse,
    first_share,
    second_share,
    third_share,
    ANCHORS: tl.constexpr,
    BLOCK_GAMES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out[0, g] = log_softmax(payoff[g] * inverse + sum over j of share_j * anchor_j[g]), up to three anchors.

    out[1] is exp(out[0]): the next payoff's opponent is this policy, mostly, or will be.
    `inverse` and the shares are the bits of float64 numbers; a stride of 0 is one anchor for all games.
    """
    kind = out.dtype.element_ty
    game = tl.program_id(0).to(tl.int64) * BLOCK_GAMES + tl.arange(0, BLOCK_GAMES)
    column = tl.arange(0, BLOCK)
    inside = (game < games)[:, None] & (column < size)[None, :]
    place = (game * size)[:, None] + column[None, :]
    # Beyond the row the payoff is -inf, a probability of 0; an anchor there must not make it a NaN.
    logits = tl.load(payoff + place, mask=inside, other=-float("inf")) * _number(inverse, kind)
    at = (game * first_stride)[:, None] + column[None, :]
    logits += tl.load(first + at, mask=inside, other=0.0) * _number(first_share, kind)
    if ANCHORS > 1:
        at = (game * second_stride)[:, None] + column[None, :]
        logits += tl.load(second + at, mask=inside, other=0.0) * _number(second_share, kind)
    if ANCHORS > 2:
        at = (game * third_stride)[:, None] + column[None, :]
        logits += tl.load(third + at, mask=inside, other=0.0) * _number(third_share, kind)
    shifted = logits - tl.max(logits, axis=1)[:, None]
    total = tl.sum(tl.exp(shifted), axis=1)
    log_probs = shifted - tl.log(total)[:, None]
    tl.store(out + place, log_probs, mask=inside)
    tl.store(out + games.to(tl.int64) * size + place, tl.exp(log_probs), mask=inside)


@triton.jit(do_not_specialize=["count", "size", "rows"])
def carry(target, source, seen, count, size, rows, BLOCK: tl.constexpr):
    """target[i] = source[i] for i < count; seen[r] = NaN where source[r, 0], of `rows` rows of `size`, is no number."""
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    value = tl.load(source + place, mask=inside, other=0.0)
    tl.store(target + place, value, mask=inside)
    row = place // size
    first = inside & (row * size == place) & (row < rows)
    nothing = tl.full((BLOCK,), float("nan"), dtype=seen.dtype.element_ty)
    tl.store(seen + row, nothing, mask=first & ~(value < float("inf")))
