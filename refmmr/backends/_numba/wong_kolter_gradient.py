"""The loss of Wong and Kolter for networks with several hidden layers, and its gradient.

The backward pass through the layers of `wong_kolter_kernels`, whose notation and records it shares.
One call goes through its samples one by one, to the loss and back, without the interpreter.
"""

from __future__ import annotations

import numpy as np

from refmmr.backends._numba.jit import jit
from refmmr.backends._numba.wong_kolter_kernels import (
    SOURCE,
    block_slacks,
    block_values,
    block_variables,
    forget_variables,
    inner,
    keep_columns,
    layer_weights,
    place_sources,
    set_bounds,
    set_coefficients,
    set_first_layer,
)


@jit
def add_samples(blocks, memory, sums, centers, y, total, dcenters, source=SOURCE):
    """Add the loss of some samples, and its gradients: twin of `forward` and `backward`.

    centers, dcenters: (n, units of layer 0), ``W x + b``, and the gradient with respect to them.
    y: (n,).  total: samples of the batch.  Returns the loss and the number of samples without a
    certificate.
    """
    value, wrong, last = 0.0, 0, len(blocks.channels) - 1
    margins = slice(blocks.first_unit[last], len(memory.lower))
    for n in range(len(y)):
        end = _forward(blocks, memory, centers[n], y[n])
        memory.dvalues[:end] = 0
        memory.dslope[:] = 0
        memory.dintercept[:] = 0
        loss, certified, dlower = _loss(memory.lower[margins], y[n], total)
        value += loss
        wrong += not certified
        _backward(blocks, memory, sums, dlower, y[n])
        _first_layer_gradient(blocks, memory, sums, dcenters[n])
    return value, wrong


@inner
def _forward(blocks, memory, center, y):
    """Bounds and coefficients of all layers.

    center: (units of layer 0,).  y: int.  Returns the end of the coefficients in the memory.
    """
    last = len(blocks.channels) - 1
    end = set_first_layer(blocks, memory, center)
    for k in range(1, last):
        weights, biases = layer_weights(blocks, blocks.weights, blocks.biases, k)
        for place in range(blocks.places[k]):
            end = set_coefficients(blocks, memory, k, place, weights, biases, end)
            set_bounds(blocks, memory, k, place)
            end = keep_columns(blocks, memory, k, place)
    weights, biases = layer_weights(blocks, blocks.weights, blocks.biases, last)
    differences = memory.margin_weights.reshape(weights.shape)
    for tap in range(len(weights)):
        for j in range(weights.shape[1]):
            differences[tap, j] = weights[tap, j, y] - weights[tap, j]
    place = blocks.places[last] - 1  # a literal 0 would have a function compiled of its own
    end = set_coefficients(blocks, memory, last, place, differences, biases[y] - biases, end)
    set_bounds(blocks, memory, last, place)
    memory.kept[blocks.first_unit[last] :] = np.arange(len(biases))
    return end


@inner
def _backward(blocks, memory, sums, dlower, y):
    """Gradients of all layers but the first, from those of the margins, dlower: (K,)."""
    last = len(blocks.channels) - 1
    _bounds_gradient(blocks, memory, last, blocks.places[last] - 1, dlower, np.zeros_like(dlower))
    dweights, dbiases = layer_weights(blocks, sums.weights, sums.biases, last)
    _margins_gradient(blocks, memory, dweights, dbiases, y)
    for k in range(last - 1, 0, -1):
        weights, _ = layer_weights(blocks, blocks.weights, blocks.biases, k)
        dweights, dbiases = layer_weights(blocks, sums.weights, sums.biases, k)
        for place in range(blocks.places[k]):
            first = blocks.first_unit[k] + place * blocks.channels[k]
            dlower, dupper = _relaxation_gradient(memory, blocks.first_block[k] + place, first)
            _bounds_gradient(blocks, memory, k, place, dlower, dupper)
            _coefficients_gradient(blocks, memory, k, place, weights, dweights, dbiases)


@inner
def _loss(margins, y, total):
    """Cross-entropy / total, whether all margins are positive, and the gradient: (K,)."""
    dlower = np.zeros_like(margins)
    largest, certified = 0.0, True
    for c in range(len(margins)):
        largest = max(largest, -margins[c])
        certified = certified and (c == y or margins[c] > 0)
    exponentials = 0.0
    for c in range(len(margins)):
        exponentials += np.exp(-margins[c] - largest)
    for c in range(len(margins)):
        if c != y:
            dlower[c] = -np.exp(-margins[c] - largest) / (exponentials * total)
    return (largest + np.log(exponentials)) / total, certified, dlower


@inner
def _relaxation_gradient(memory, block, first):
    """Gradients with respect to the bounds of a block's columns: `parallel_relaxation_gradient`.

    first: number of the block's first unit.
    """
    lower, upper, kept = memory.lower[first:], memory.upper[first:], memory.kept[first:]
    dlower = np.zeros(memory.columns[block], memory.values.dtype)
    dupper = np.zeros_like(dlower)
    if memory.unstable[block] == 0:
        return dlower, dupper
    for j in range(len(dlower)):
        c = kept[j]
        if lower[c] < 0 and upper[c] > 0:
            width = upper[c] - lower[c]
            above, below = upper[c] / width, lower[c] / width
            dslope, dintercept = memory.dslope[first + c], memory.dintercept[first + c]
            dlower[j] = dslope * above / width - dintercept * above**2
            dupper[j] = -dslope * below / width + dintercept * below**2
    return dlower, dupper


@inner
def _bounds_gradient(blocks, memory, k, place, dlower, dupper):
    """The chain rule of `set_bounds`: add to the gradients of coefficients and intercepts.

    dlower, dupper: (columns,).
    """
    if not (dlower.any() or dupper.any()):
        return
    block = blocks.first_block[k] + place
    first = blocks.first_unit[k] + place * blocks.channels[k]
    values = block_values(memory, memory.values, block)
    dvalues = block_values(memory, memory.dvalues, block)
    variables, zero = block_variables(memory, block), dlower.dtype.type(0)
    dnorm = dlower.dtype.type(blocks.eps) * (dupper - dlower)
    scale = np.zeros_like(dnorm)
    for j in range(len(scale)):
        norm = memory.norm[first + memory.kept[first + j]]
        if norm > 0:
            scale[j] = dnorm[j] / norm
        if norm > 0 and blocks.p == 1:
            i = _first_largest(blocks, values, variables, j, norm)
            dvalues[i, j] += dnorm[j] if values[i, j] > 0 else -dnorm[j]
    dvalues[0] += dlower + dupper
    for i in range(1, len(variables)):
        row, drow, variable = values[i], dvalues[i], variables[i]
        if variable > blocks.n_inputs:
            intercept, dintercept = memory.intercept[variable], zero
            for j in range(len(row)):
                dintercept += dlower[j] * min(row[j], zero) + dupper[j] * max(row[j], zero)
            for j in range(len(row)):
                dterm = dlower[j] if row[j] < 0 else (dupper[j] if row[j] > 0 else zero)
                drow[j] += dterm * intercept
            memory.dintercept[variable] += dintercept
        elif blocks.p == 2:
            for j in range(len(row)):
                drow[j] += scale[j] * row[j]
        elif blocks.p != 1:
            for j in range(len(row)):
                drow[j] += dnorm[j] if row[j] > 0 else (-dnorm[j] if row[j] < 0 else zero)


@inner
def _first_largest(blocks, values, variables, j, largest):
    """Row of the first of column j's largest coefficients of inputs in the user's order.

    The user's images are channel by channel.  largest: their absolute value, > 0.
    """
    found, best = 0, blocks.n_inputs
    for i in range(1, len(variables)):
        if variables[i] <= blocks.n_inputs and abs(values[i, j]) == largest:
            pixel, channel = divmod(variables[i] - 1, blocks.input_channels)
            rank = channel * (blocks.n_inputs // blocks.input_channels) + pixel
            if rank < best:
                found, best = i, rank
    return found


@inner
def _coefficients_gradient(blocks, memory, k, place, weights, dweights, dbiases):
    """The chain rule of `set_coefficients`: add to the gradients of weights, slopes, coefficients.

    weights, dweights: (taps, channels before, channels).  dbiases: (channels,).
    """
    block, before = blocks.first_block[k] + place, blocks.channels[k - 1]
    own = blocks.first_unit[k] + place * blocks.channels[k]
    columns = memory.kept[own : own + memory.columns[block]]
    if len(columns) == 0:
        return
    dvalues, row_of = block_values(memory, memory.dvalues, block), memory.row_of
    for j in range(len(columns)):
        dbiases[columns[j]] += dvalues[0, j]
    variables = block_variables(memory, block)
    for i in range(len(variables)):
        row_of[variables[i]] = i
    sources = place_sources(blocks, k, place)
    for tap in range(len(sources)):
        if sources[tap] < 0:
            continue
        source = blocks.first_block[k - 1] + sources[tap]
        first = blocks.first_unit[k - 1] + sources[tap] * before
        kept = memory.kept[first : first + memory.columns[source]]
        if len(kept):
            _product_gradient(
                memory, source, first, kept, columns, dvalues, weights[tap], dweights[tap]
            )
        for i in block_slacks(memory, source, first):
            row, dline = dvalues[row_of[first + i]], dweights[tap, i]
            for j in range(len(columns)):
                dline[columns[j]] += row[j]
    forget_variables(memory, block)


@inner
def _product_gradient(memory, source, first, kept, columns, dvalues, weights, dweights):
    """The chain rule of one product of `set_coefficients`.

    kept: channels of the source's columns.  columns: channels of the result's columns.  dvalues:
    (rows, columns) of the result.  weights, dweights: (channels before, channels).
    """
    variables = block_variables(memory, source)
    m, before, after = len(variables), len(kept), len(columns)
    relaxed = memory.scratch[0, : before * after].reshape(before, after)
    dproduct = memory.scratch[1, : m * after].reshape(m, after)
    for i in range(m):
        target, line = dproduct[i], dvalues[memory.row_of[variables[i]]]
        for j in range(after):
            target[j] = line[j]
    drelaxed = memory.scratch[2, : before * after].reshape(before, after)
    np.dot(block_values(memory, memory.values, source).T, dproduct, drelaxed)
    for i in range(before):
        slope, dslope = memory.slope[first + kept[i]], memory.slope.dtype.type(0)
        line, dline = weights[kept[i]], dweights[kept[i]]
        for j in range(after):
            dslope += drelaxed[i, j] * line[columns[j]]
            dline[columns[j]] += slope * drelaxed[i, j]
            relaxed[i, j] = slope * line[columns[j]]
        memory.dslope[first + kept[i]] += dslope
    dsource = memory.scratch[2, : m * before].reshape(m, before)
    np.dot(dproduct, relaxed.T, dsource)
    target = block_values(memory, memory.dvalues, source)
    for i in range(m):
        line, row = dsource[i], target[i]
        for j in range(before):
            row[j] += line[j]


@inner
def _margins_gradient(blocks, memory, dweights, dbiases, y):
    """Gradients of the weights of layer L from those of their differences ``W_y - W_c``."""
    last = len(blocks.channels) - 1
    differences = memory.margin_weights.reshape(dweights.shape)
    ddifferences = memory.dmargin_weights.reshape(dweights.shape)
    ddifferences[:] = 0
    dcenter = np.zeros_like(dbiases)
    place = blocks.places[last] - 1
    _coefficients_gradient(blocks, memory, last, place, differences, ddifferences, dcenter)
    dbiases -= dcenter
    dbiases[y] += dcenter.sum()
    for tap in range(len(dweights)):
        for j in range(dweights.shape[1]):
            dweights[tap, j] -= ddifferences[tap, j]
            dweights[tap, j, y] += ddifferences[tap, j].sum()


@inner
def _first_layer_gradient(blocks, memory, sums, dcenter):
    """Add to the gradients of layer 0.  dcenter: (units,), the result."""
    channels = blocks.channels[0]
    dcenter[:] = 0
    for place in range(blocks.places[0]):
        first = blocks.first_unit[0] + place * channels
        dlower, dupper = _relaxation_gradient(memory, place, first)
        dvalues = block_values(memory, memory.dvalues, place)
        kept = memory.kept[first : first + memory.columns[place]]
        for j in range(len(kept)):
            unit = place * channels + kept[j]
            dcenter[unit] = dvalues[0, j] + dlower[j] + dupper[j]
            sums.first_norms[unit] += dcenter.dtype.type(blocks.eps) * (dupper[j] - dlower[j])
        row = 1
        for tap in range(blocks.inputs.shape[1]):
            if blocks.inputs[place, tap] > 0:
                for j in range(len(kept)):
                    sums.first_weights[tap, kept[j]] += dvalues[row, j]
                row += 1
