// The training objective: cross-entropy, distances and hinges, and the way back from the norms of
// the hyperplanes to the weights.  `refmmr.backends._cupy.unit_gradients` says how the gradients of
// units are stored; a "row" is the gradient of one unit, and rows lie as (n, pixels, outputs), with
// one pixel for a dense layer.

__device__ real sign_of(real x) {
    return (real)((x > 0) - (x < 0));
}

// ------------------------------------------------------------------------------------- the samples
// Cross-entropy of each sample and its gradient, both times `scale`, and whether it is misclassified.
extern "C" __global__ void cross_entropy(
    i64 threads, const real *logits, const i64 *y, real *losses, real *wrong, real *gradient,
    int classes, real scale) {
    i64 n = thread_number();
    if (n >= threads) return;
    const real *f = logits + n * classes;
    real *g = gradient + n * classes;
    int own = (int)y[n], largest = 0;
    for (int s = 1; s < classes; s++)
        if (f[s] > f[largest]) largest = s;
    real sum = 0, rivals = 0;
    for (int s = 0; s < classes; s++) sum += g[s] = exp(f[s] - f[largest]);
    // The class's own entry is minus the sum of the others: softmax - 1 would cancel.
    for (int s = 0; s < classes; s++) {
        g[s] = scale * g[s] / sum;
        if (s != own) rivals += g[s];
    }
    g[own] = -rivals;
    losses[n] = scale * (log(sum) - (f[own] - f[largest]));
    wrong[n] = largest != own;
}

// margins[n, s] = logits[n, y_n] - logits[n, s]
extern "C" __global__ void margins(
    i64 threads, const real *logits, const i64 *y, real *margins, int classes) {
    i64 t = thread_number();
    if (t >= threads) return;
    i64 n = t / classes;
    margins[t] = logits[n * classes + y[n]] - logits[t];
}

// Add the gradient with respect to the logits from that of the margins.
extern "C" __global__ void margins_back(
    i64 threads, const real *dmargins, const i64 *y, real *dlogits, int classes) {
    i64 n = thread_number();
    if (n >= threads) return;
    real sum = 0;
    for (int s = 0; s < classes; s++) {
        sum += dmargins[n * classes + s];
        dlogits[n * classes + s] -= dmargins[n * classes + s];
    }
    dlogits[n * classes + y[n]] += sum;
}

// The gradient with respect to a layer's pre-activations f: what comes back through the ReLU, plus
// (if any) the part that reads f directly, df[n, offset + i] of `units`.
extern "C" __global__ void through_relu(
    i64 threads, const real *f, const real *df, real *gradient, int size, int offset, int units,
    int direct) {
    i64 t = thread_number(), n = t;
    if (t >= threads) return;
    int i = digit(&n, size);
    gradient[t] *= (real)(f[t] > 0);
    if (direct) gradient[t] += df[n * units + offset + i];
}

// --------------------------------------------------------------------------- distances and hinges
// d = value / norm, of |value| if `absolute`; infinite where there is no hyperplane, or where d is
// minus infinity.
extern "C" __global__ void plane_distances(
    i64 threads, const real *values, const real *norms, real *d, int absolute) {
    i64 t = thread_number();
    if (t >= threads) return;
    real value = absolute && values[t] < 0 ? -values[t] : values[t];
    real infinite = (real)1 / (real)0.0f;
    real found = norms[t] > 0 ? value / norms[t] : infinite;
    d[t] = found == -infinite ? infinite : found;
}

// How many distances from `first` to `last` are smaller than mine, or equal with `equal`; it stops
// soon after there are k.
__device__ int count(const real *d, int first, int last, real mine, int k, bool equal) {
    int found = 0;
    for (int start = first; start < last && found < k; start += 64) {
        int stop = start + 64 < last ? start + 64 : last;
        if (equal)
            for (int i = start; i < stop; i++) found += d[i] <= mine;
        else
            for (int i = start; i < stop; i++) found += d[i] < mine;
    }
    return found;
}

// The k smallest of each row's `planes` distances; of equal ones the first.  For those nearer than
// gamma, add  weight / k * (1 - d / gamma)  to the hinges; the slope is the derivative of that.
// A thread that is near counts those that are nearer; all threads of a row read the same numbers.
extern "C" __global__ void nearest(
    i64 threads, const real *d, real *hinges, real *slopes, int planes, int k, real gamma,
    real weight) {
    i64 t = thread_number(), n = t;
    if (t >= threads) return;
    int own = digit(&n, planes), nearer = 0;
    const real *row = d + n * planes;
    slopes[t] = 0;
    if (!(d[t] < gamma)) return;
    real mine = d[t];
    nearer = count(row, 0, own, mine, k, true);
    if (nearer < k) nearer += count(row, own + 1, planes, mine, k - nearer, false);
    if (nearer >= k) return;
    hinges[t] += weight * (1 - mine / gamma) / k;
    slopes[t] = -weight / (k * gamma);
}

// From the slopes to the values (added) and to the norms: d = |value| / norm.
extern "C" __global__ void distance_gradients(
    i64 threads, const real *slopes, const real *d, const real *values, const real *norms,
    real *dvalues, real *dnorms, int absolute) {
    i64 t = thread_number();
    if (t >= threads) return;
    dnorms[t] = 0;
    if (slopes[t] == 0) return;
    real slope = slopes[t] / norms[t];
    dvalues[t] += absolute ? slope * sign_of(values[t]) : slope;
    dnorms[t] = -slope * d[t];
}

// ------------------------------------------------------------------------------------------- norms
// Where row (n, a, o) of (n, pixels, outputs) has its number among all `units`: n, offset + o, a.
__device__ i64 unit_of(i64 row, int pixels, int outputs, int offset, int units) {
    i64 n = row;
    int o = digit(&n, outputs), a = digit(&n, pixels);
    return n * units + offset + (i64)o * pixels + a;
}

// ||row||_q for q = 1 and 2, and for q = inf (written 0), with the place of the largest entry.
extern "C" __global__ void row_norms(
    i64 threads, const real *rows, real *norms, int *largest, int size, int pixels, int outputs,
    int offset, int units, int q) {
    i64 row = thread_number();
    if (row >= threads) return;
    const real *v = rows + row * size;
    real norm = 0;
    int place = 0;
    for (int i = 0; i < size; i++) {
        real entry = v[i] < 0 ? -v[i] : v[i];
        if (q == 0 && entry > norm) place = i;
        norm = q == 1 ? norm + entry : q == 2 ? norm + entry * entry : entry > norm ? entry : norm;
    }
    i64 unit = unit_of(row, pixels, outputs, offset, units);
    norms[unit] = q == 2 ? sqrt(norm) : norm;
    if (q == 0) largest[unit] = place;
}

// Add the gradient of  sum of dnorms * norms  with respect to the rows; see `row_norms`.
extern "C" __global__ void row_norms_back(
    i64 threads, const real *__restrict__ rows, const real *__restrict__ norms,
    const int *__restrict__ largest, const real *__restrict__ dnorms, real *__restrict__ drows,
    int samples, int size, int pixels, int outputs, int offset, int units, int q) {
    i64 t = thread_number(), first = t;
    if (t >= threads) return;
    int i = digit(&first, size), o = digit(&first, outputs), a = digit(&first, pixels);
    i64 sample = (i64)pixels * outputs * size, place = t - first * sample;
    i64 unit = offset + (i64)o * pixels + a + REPEATS * first * units;
    for (i64 n = REPEATS * first; n < samples && n < REPEATS * (first + 1); n++, unit += units) {
        real dnorm = dnorms[unit];
        if (dnorm == 0) continue;
        real v = rows[n * sample + place];
        if (q == 2) drows[n * sample + place] += dnorm * (v / norms[unit]);
        else if (q == 1 || largest[unit] == i) drows[n * sample + place] += dnorm * sign_of(v);
    }
}

// ------------------------------------------------------------------------------------ dense layers
// masked[n, r, i] = W[r, i] where unit i of the layer before is active, f[n, i] > 0
extern "C" __global__ void mask_weights(
    i64 threads, const real *W, const real *f, real *masked, int rows, int inner) {
    i64 t = thread_number(), n = t;
    if (t >= threads) return;
    int i = digit(&n, inner), r = digit(&n, rows);
    masked[t] = f[n * inner + i] > 0 ? W[r * inner + i] : (real)0;
}

// The transpose: dW[r, i] = sum over n of dmasked[n, r, i] where f[n, i] > 0.
extern "C" __global__ void mask_weights_back(
    i64 threads, const real *dmasked, const real *f, real *dW, int samples, int inner) {
    i64 t = thread_number(), r = t;
    if (t >= threads) return;
    int i = digit(&r, inner);
    real sum = 0;
    for (int n = 0; n < samples; n++)
        if (f[(i64)n * inner + i] > 0) sum += dmasked[n * threads + t];
    dW[t] = sum;
}

// R[n, s] = V[n, y_n] - V[n, s]; with `shared`, V is the same for all samples.
extern "C" __global__ void class_differences(
    i64 threads, const real *V, const i64 *y, real *R, int classes, int size, int shared) {
    i64 t = thread_number(), n = t;
    if (t >= threads) return;
    int i = digit(&n, size), s = digit(&n, classes);
    const real *v = V + (shared ? 0 : n * classes * size);
    R[t] = v[y[n] * size + i] - v[(i64)s * size + i];
}

// The transpose: dV[n, s] = -dR[n, s], plus the sum over all classes where s = y_n.
extern "C" __global__ void class_differences_back(
    i64 threads, const real *dR, const i64 *y, real *dV, int classes, int size) {
    i64 t = thread_number(), n = t;
    if (t >= threads) return;
    int i = digit(&n, size), s = digit(&n, classes);
    real sum = -dR[t];
    if (s == y[n])
        for (int c = 0; c < classes; c++) sum += dR[(n * classes + c) * size + i];
    dV[t] = sum;
}

// ---------------------------------------------------------------------------- patches, on and back
// Patches times the mask of their units; with `shared`, patches are the same for all samples.
// `masked` may be `patches` itself.
extern "C" __global__ void mask_patches(
    i64 threads, const real *patches, const real *f, real *masked, int samples, int size,
    int pixels, int outputs, int shared) {
    i64 t = thread_number(), first = t;
    if (t >= threads) return;
    int i = digit(&first, size), o = digit(&first, outputs), a = digit(&first, pixels);
    i64 units = (i64)outputs * pixels, place = ((i64)a * outputs + o) * size + i;
    for (i64 n = REPEATS * first; n < samples && n < REPEATS * (first + 1); n++) {
        bool active = f[n * units + (i64)o * pixels + a] > 0;
        i64 own = n * units * size + place;
        masked[own] = active ? patches[shared ? place : own] : (real)0;
    }
}

// Set what lies outside of the image to 0; patches lie as (n, rows, columns, channels, h, w), and a
// thread has a line of one.
extern "C" __global__ void crop_patches(
    i64 threads, real *patches, int channels, int height, int width, int rows, int columns,
    int window_height, int window_width, int down, int across, int top, int left) {
    i64 t = thread_number(), n = t;
    if (t >= threads) return;
    int u = digit(&n, window_height);
    digit(&n, channels);
    int j = digit(&n, columns), i = digit(&n, rows), y = i * down - top + u, x = j * across - left;
    bool outside = y < 0 || y >= height;
    if (!outside && x >= 0 && x + window_width <= width) return;
    for (int v = 0; v < window_width; v++)
        if (outside || x + v < 0 || x + v >= width) patches[t * window_width + v] = 0;
}

// For patches that all samples share but for the border: what a unit in the window adds to the
// patch of the next layer,
//
// block[m, a, b, o, c, u, v] = filters[o, m, a, b] * before[m, c, u - a * jump_down,
//     v - b * jump_across]
//
// A patch of the next layer is the mask of its window times the block.
extern "C" __global__ void patch_block(
    i64 threads, const real *filters, const real *before, real *block, int inputs, int outputs,
    int kernel_height, int kernel_width, int jump_down, int jump_across, int colors,
    int before_height, int before_width, int after_height, int after_width) {
    i64 t = thread_number(), m = t;
    if (t >= threads) return;
    int v = digit(&m, after_width), u = digit(&m, after_height), c = digit(&m, colors);
    int o = digit(&m, outputs), b = digit(&m, kernel_width), a = digit(&m, kernel_height);
    u -= a * jump_down;
    v -= b * jump_across;
    bool inside = 0 <= u && u < before_height && 0 <= v && v < before_width;
    real weight = filters[((o * inputs + m) * kernel_height + a) * kernel_width + b];
    i64 line = (m * colors + c) * before_height + u;
    block[t] = inside ? weight * before[line * before_width + v] : (real)0;
}

// The gradient with respect to the filters from that to the block.
extern "C" __global__ void patch_block_filters(
    i64 threads, const real *dblock, const real *before, real *dfilters, int inputs, int outputs,
    int kernel_height, int kernel_width, int jump_down, int jump_across, int colors,
    int before_height, int before_width, int after_height, int after_width) {
    i64 t = thread_number(), o = t;
    if (t >= threads) return;
    int b = digit(&o, kernel_width), a = digit(&o, kernel_height), m = digit(&o, inputs);
    i64 row = (((i64)m * kernel_height + a) * kernel_width + b) * outputs + o;
    real sum = 0;
    for (int c = 0; c < colors; c++)
        for (int u = 0; u < before_height; u++) {
            i64 line = (row * colors + c) * after_height + u + a * jump_down;
            const real *patch = before + ((m * colors + c) * before_height + u) * before_width;
            for (int v = 0; v < before_width; v++)
                sum += dblock[line * after_width + v + b * jump_across] * patch[v];
        }
    dfilters[t] = sum;
}

// The gradient with respect to `before` from that to the block, for each output.
extern "C" __global__ void patch_block_before(
    i64 threads, const real *dblock, const real *filters, real *dbefore, int inputs, int outputs,
    int kernel_height, int kernel_width, int jump_down, int jump_across, int colors,
    int before_height, int before_width, int after_height, int after_width) {
    i64 t = thread_number(), o = t;
    if (t >= threads) return;
    int v = digit(&o, before_width), u = digit(&o, before_height), c = digit(&o, colors);
    int m = digit(&o, inputs);
    real sum = 0;
    for (int a = 0; a < kernel_height; a++)
        for (int b = 0; b < kernel_width; b++) {
            i64 row = (((i64)m * kernel_height + a) * kernel_width + b) * outputs + o;
            i64 line = (row * colors + c) * after_height + u + a * jump_down;
            real weight = filters[((o * inputs + m) * kernel_height + a) * kernel_width + b];
            sum += dblock[line * after_width + v + b * jump_across] * weight;
        }
    dbefore[t] = sum;
}

// The transpose of `extend_patches`: the gradient with respect to the patches of the layer before,
// a sum over the windows (i, j) that a unit is in.
extern "C" __global__ void extend_patches_back(
    i64 threads, const real *dafter, const bool *active, const real *filters, real *dbefore,
    int inputs, int height, int width, int before_height, int before_width, int jump_down,
    int jump_across, int outputs, int rows, int columns, int kernel_height, int kernel_width,
    int down, int across, int top, int left, int colors, int after_height, int after_width) {
    i64 t = thread_number(), n = t;
    if (t >= threads) return;
    int v = digit(&n, before_width), u = digit(&n, before_height), c = digit(&n, colors);
    int m = digit(&n, inputs), x = digit(&n, width), y = digit(&n, height);
    real sum = 0;
    if (active[((n * inputs + m) * height + y) * width + x])
        for (int a = 0; a < kernel_height; a++)
            for (int b = 0; b < kernel_width; b++) {
                int i = y + top - a, j = x + left - b;
                if (i < 0 || i % down || i / down >= rows) continue;
                if (j < 0 || j % across || j / across >= columns) continue;
                i64 window = (n * rows + i / down) * columns + j / across;
                for (int o = 0; o < outputs; o++) {
                    i64 line = ((window * outputs + o) * colors + c) * after_height;
                    line += u + a * jump_down;
                    real weight = filters[((o * inputs + m) * kernel_height + a) * kernel_width + b];
                    sum += dafter[line * after_width + v + b * jump_across] * weight;
                }
            }
    dbefore[t] = sum;
}

// The gradient of each sample with respect to the filters of `extend_patches`.
extern "C" __global__ void extend_patches_filters(
    i64 threads, const real *before, const bool *active, const real *dafter, real *dfilters,
    int inputs, int height, int width, int before_height, int before_width, int jump_down,
    int jump_across, int outputs, int rows, int columns, int kernel_height, int kernel_width,
    int down, int across, int top, int left, int colors, int after_height, int after_width) {
    i64 t = thread_number(), n = t;
    if (t >= threads) return;
    int b = digit(&n, kernel_width), a = digit(&n, kernel_height), m = digit(&n, inputs);
    int o = digit(&n, outputs);
    real sum = 0;
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < columns; j++) {
            int y = i * down - top + a, x = j * across - left + b;
            if (y < 0 || y >= height || x < 0 || x >= width) continue;
            if (!active[((n * inputs + m) * height + y) * width + x]) continue;
            i64 from = ((n * height + y) * width + x) * inputs + m;
            i64 to = ((n * rows + i) * columns + j) * outputs + o;
            for (int c = 0; c < colors; c++)
                for (int u = 0; u < before_height; u++) {
                    i64 line = (to * colors + c) * after_height + u + a * jump_down;
                    i64 patch = (from * colors + c) * before_height + u;
                    for (int v = 0; v < before_width; v++)
                        sum += dafter[line * after_width + v + b * jump_across]
                            * before[patch * before_width + v];
                }
        }
    dfilters[t] = sum;
}
