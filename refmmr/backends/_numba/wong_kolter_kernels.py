"""Compiled bound of Wong and Kolter, and its gradient, for networks with several hidden layers.

The relaxed ReLU of an unstable unit i is ``max(f_i, 0) = s_i f_i + e_i`` with ``0 <= e_i <= t_i``.
So on the ball each layer is affine in the input z and in the *slacks* e of the layers before,

    f_k(z) = c_k + V_k (z - x) + E_k e,     c_0 = W_0 x + b_0,   V_0 = W_0,   E_0 empty,
    c_{k+1} = W_{k+1} (s_k c_k) + b_{k+1},   V_{k+1} = W_{k+1} diag(s_k) V_k,
    E_{k+1} = [ W_{k+1} diag(s_k) E_k,  W_{k+1} ],      (the last part: columns of unstable units)

    lower = c - eps ||V||_q + min(E, 0) t,      upper = c + eps ||V||_q + max(E, 0) t.

``V_k`` and ``E_k`` are the coefficients G of `reference.wong_kolter`, which computes each layer's
anew, from the layer to the input.  Computed forward, a layer's coefficients are one product from
those of the layer before, an inactive unit takes no part, only unstable units have a slack, and
the backward pass is that of an ordinary network whose activations are coefficients.

A *place* of a layer is an output pixel of a convolution, or the whole of a dense layer.  The
coefficients of its units are a *block*: a row for each *variable* that they depend on, a column for
each unit.  Variable 0 is the constant 1 (its row is c), variables 1 to d are the inputs, the others
the slacks; a unit's number is its slack's.  So V of a unit of a convolution lives on its receptive
field.  All three kinds of rows are propagated by the same products (BLAS); only the bounds and
their gradients tell them apart.

For the paper's convolutional network the dense layer then takes 0.2 million multiplications a unit
instead of 0.45, and 0.07 once the training has made units stable.  The random projections of Wong,
Schmidt, Metzen and Kolter (2018), which estimate the norms and sums of all units of a layer from
some 50 vectors, cost as much as 50 units for the norms, and again for the sums of each earlier
layer: with 100 units in that layer they save nothing, and only the exact bound is offered.

The functions here are compiled into `wong_kolter_gradient.add_samples`, which is cached.  Numba
does not see that a file which it calls has changed, so that takes `SOURCE` as a default argument,
see `pieces`.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numba import njit

SOURCE = zlib.crc32(Path(__file__).read_bytes())
"""Changes with this file."""

# As `jit`, but compiled into its callers alone.  A wrapper for calls from Python, which takes long
# records apart, would be a large part of the compiler's work.
inner: Any = njit(  # type: ignore[call-overload]
    nogil=True, error_model="numpy", fastmath={"contract", "reassoc"}, no_cpython_wrapper=True
)


class Blocks(NamedTuple):
    """The network.  Layers 0 to L; units of layer L are the margins to the K classes."""

    p: float
    eps: float
    n_inputs: int
    input_channels: int
    channels: np.ndarray  # (L + 1,), units of a place
    places: np.ndarray  # (L + 1,)
    taps: np.ndarray  # (L + 1,), places of the layer before that a place reads
    first_block: np.ndarray  # (L + 1,), number of the block of a layer's first place
    first_unit: np.ndarray  # (L + 1,), number of a layer's first unit
    # Flat, one layer after the other, where each begins:
    sources: np.ndarray  # (places, taps) of a layer: places of the layer before, -1: padding
    source_start: np.ndarray  # (L + 1,)
    weights: np.ndarray  # (taps, channels before, channels) of a layer
    weight_start: np.ndarray  # (L + 1,)
    biases: np.ndarray  # (channels,) of a layer
    bias_start: np.ndarray  # (L + 1,)
    # Layer 0:
    inputs: np.ndarray  # (places, taps), numbers of the inputs from 1, 0: padding
    first_weights: np.ndarray  # (taps, channels)
    first_norms: np.ndarray  # (places * channels,), ||W||_q of each unit


class Sums(NamedTuple):
    """Gradients to add to, in the shapes of `Blocks`."""

    weights: np.ndarray
    biases: np.ndarray
    first_weights: np.ndarray
    first_norms: np.ndarray


class Memory(NamedTuple):
    """A sample's blocks and units; arrays over units are indexed by the number of a unit."""

    # Blocks: (blocks,)
    rows: np.ndarray
    columns: np.ndarray
    unstable: np.ndarray
    variable_start: np.ndarray
    value_start: np.ndarray
    # Flat, one block after the other:
    variables: np.ndarray  # (rows,) of a block
    values: np.ndarray  # (rows, columns) of a block: the coefficients
    dvalues: np.ndarray
    # Units:
    lower: np.ndarray
    upper: np.ndarray
    norm: np.ndarray
    slope: np.ndarray
    intercept: np.ndarray
    dslope: np.ndarray
    dintercept: np.ndarray
    # From a place's first unit on:
    kept: np.ndarray  # channels of the block's columns
    unstable_channels: np.ndarray
    row_of: np.ndarray  # (variables,), row of a variable in the block at work, or -1
    margin_weights: np.ndarray  # weights of layer L for the sample's class
    dmargin_weights: np.ndarray
    scratch: np.ndarray  # (3, numbers of the largest array of a product)


# ---- Views of flat arrays.


@inner
def layer_weights(blocks, weights, biases, k):
    """Weights (taps, channels before, channels) and biases (channels,) of layer k >= 1."""
    after, before = blocks.channels[k], blocks.channels[k - 1]
    taps, start = blocks.taps[k], blocks.weight_start[k]
    W = weights[start : start + taps * before * after].reshape(taps, before, after)
    return W, biases[blocks.bias_start[k] : blocks.bias_start[k] + after]


@inner
def place_sources(blocks, k, place):
    """The places of layer k - 1 that a place of layer k reads: (taps,), -1 for padding."""
    taps = blocks.taps[k]
    start = blocks.source_start[k] + place * taps
    return blocks.sources[start : start + taps]


@inner
def block_variables(memory, block):
    """The variables of a block's rows."""
    start = memory.variable_start[block]
    return memory.variables[start : start + memory.rows[block]]


@inner
def block_values(memory, values, block):
    """Coefficients of a block, or their gradient: (rows, columns)."""
    start, rows, columns = memory.value_start[block], memory.rows[block], memory.columns[block]
    return values[start : start + rows * columns].reshape(rows, columns)


@inner
def block_slacks(memory, block, first):
    """Channels of the unstable units of a block, whose first unit is `first`."""
    return memory.unstable_channels[first : first + memory.unstable[block]]


# ---- Forward.


@inner
def set_first_layer(blocks, memory, center):
    """Bounds and blocks of layer 0.  center: (units,).  Returns where free memory begins."""
    end, channels = 0, blocks.channels[0]
    for place in range(blocks.places[0]):
        first = blocks.first_unit[0] + place * channels
        own = center[place * channels : (place + 1) * channels]
        lower, upper = memory.lower[first:], memory.upper[first:]
        for c in range(channels):
            reach = own.dtype.type(blocks.eps) * blocks.first_norms[place * channels + c]
            lower[c], upper[c] = own[c] - reach, own[c] + reach
        memory.value_start[place] = end
        kept = relax(memory, place, first, channels)
        variables = memory.variables[memory.variable_start[place] :]
        variables[0], rows = 0, 1
        for j in range(len(kept)):
            memory.values[end + j] = own[kept[j]]
        end += len(kept)
        for tap in range(blocks.inputs.shape[1]):
            if blocks.inputs[place, tap] > 0:
                variables[rows] = blocks.inputs[place, tap]
                rows += 1
                for j in range(len(kept)):
                    memory.values[end + j] = blocks.first_weights[tap, kept[j]]
                end += len(kept)
        memory.rows[place] = rows
    return end


@inner
def set_coefficients(blocks, memory, k, place, weights, biases, start):
    """Coefficients of a block from those of the layer before.

    weights: (taps, channels before, channels).  biases: (channels,).  They are written at `start`
    of the memory; returns its end.
    """
    block = blocks.first_block[k] + place
    rows = list_variables(blocks, memory, k, place)
    memory.value_start[block], memory.columns[block] = start, len(biases)
    values, row_of = block_values(memory, memory.values, block), memory.row_of
    values[:] = 0
    before = blocks.channels[k - 1]
    sources = place_sources(blocks, k, place)
    for tap in range(len(sources)):
        if sources[tap] < 0:
            continue
        source = blocks.first_block[k - 1] + sources[tap]
        first = blocks.first_unit[k - 1] + sources[tap] * before
        kept = memory.kept[first : first + memory.columns[source]]
        if len(kept):
            variables, after = block_variables(memory, source), len(biases)
            relaxed = memory.scratch[0, : len(kept) * after].reshape(len(kept), after)
            for j in range(len(kept)):
                slope = memory.slope[first + kept[j]]
                target, line = relaxed[j], weights[tap, kept[j]]
                for c in range(len(target)):
                    target[c] = slope * line[c]
            product = memory.scratch[1, : len(variables) * after].reshape(len(variables), after)
            np.dot(block_values(memory, memory.values, source), relaxed, product)
            for i in range(len(variables)):
                target, line = values[row_of[variables[i]]], product[i]
                for c in range(len(target)):
                    target[c] += line[c]
        for j in block_slacks(memory, source, first):
            target, line = values[row_of[first + j]], weights[tap, j]
            for c in range(len(target)):
                target[c] = line[c]
    values[0] += biases
    forget_variables(memory, block)
    return start + rows * len(biases)


@inner
def list_variables(blocks, memory, k, place):
    """Give each variable that a block depends on a row; returns the number of rows."""
    block = blocks.first_block[k] + place
    variables, row_of = memory.variables[memory.variable_start[block] :], memory.row_of
    variables[0], row_of[0], rows = 0, 0, 1
    for source in place_sources(blocks, k, place):
        if source < 0:
            continue
        before = blocks.first_block[k - 1] + source
        for variable in block_variables(memory, before):
            if row_of[variable] < 0:
                variables[rows], row_of[variable] = variable, rows
                rows += 1
        first = blocks.first_unit[k - 1] + source * blocks.channels[k - 1]
        for j in block_slacks(memory, before, first):
            variables[rows], row_of[first + j] = first + j, rows
            rows += 1
    memory.rows[block] = rows
    return rows


@inner
def forget_variables(memory, block):
    """Undo `list_variables`."""
    for variable in block_variables(memory, block):
        memory.row_of[variable] = -1


@inner
def set_bounds(blocks, memory, k, place):
    """Bounds of the units of a block from its coefficients, and the norms of V."""
    block, channels = blocks.first_block[k] + place, blocks.channels[k]
    first = blocks.first_unit[k] + place * channels
    values, variables = block_values(memory, memory.values, block), block_variables(memory, block)
    lower, upper = memory.lower[first : first + channels], memory.upper[first : first + channels]
    norm = memory.norm[first : first + channels]
    zero = lower.dtype.type(0)
    lower[:] = values[0]
    upper[:] = values[0]
    norm[:] = 0
    for i in range(1, len(variables)):
        row, variable = values[i], variables[i]
        if variable > blocks.n_inputs:
            intercept = memory.intercept[variable]
            for c in range(len(row)):
                lower[c] += min(row[c], zero) * intercept
            for c in range(len(row)):
                upper[c] += max(row[c], zero) * intercept
        elif blocks.p == 1:
            for c in range(len(row)):
                norm[c] = max(norm[c], abs(row[c]))
        elif blocks.p == 2:
            for c in range(len(row)):
                norm[c] += row[c] * row[c]
        else:
            for c in range(len(row)):
                norm[c] += abs(row[c])
    for c in range(channels):
        if blocks.p == 2:
            norm[c] = np.sqrt(norm[c])
        lower[c] -= lower.dtype.type(blocks.eps) * norm[c]
        upper[c] += lower.dtype.type(blocks.eps) * norm[c]


@inner
def relax(memory, block, first, channels):
    """Slopes and intercepts of a block's units; returns the channels that are not inactive."""
    lower, upper = memory.lower[first : first + channels], memory.upper[first : first + channels]
    slope = memory.slope[first : first + channels]
    intercept = memory.intercept[first : first + channels]
    kept = memory.kept[first : first + channels]
    unstable_channels = memory.unstable_channels[first : first + channels]
    columns = unstable = 0
    for c in range(channels):
        slope[c], intercept[c] = lower[c] >= 0, 0
        if lower[c] < 0 and upper[c] > 0:
            slope[c] = upper[c] / (upper[c] - lower[c])
            intercept[c] = -slope[c] * lower[c]
            unstable_channels[unstable] = c
            unstable += 1
        # A bound that is not a number is kept, for the loss to show it.
        if not (lower[c] < 0 and upper[c] <= 0):
            kept[columns] = c
            columns += 1
    memory.columns[block], memory.unstable[block] = columns, unstable
    return kept[:columns]


@inner
def keep_columns(blocks, memory, k, place):
    """Relax the units of a block and remove the columns of inactive ones; returns its end."""
    block, channels = blocks.first_block[k] + place, blocks.channels[k]
    kept = relax(memory, block, blocks.first_unit[k] + place * channels, channels)
    start, rows, columns = memory.value_start[block], memory.rows[block], len(kept)
    values = memory.values[start : start + rows * channels]
    # Every number moves to the left or stays.
    for i in range(rows):
        for j in range(columns):
            values[i * columns + j] = values[i * channels + kept[j]]
    return start + rows * columns
