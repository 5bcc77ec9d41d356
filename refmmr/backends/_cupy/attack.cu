// Projected gradient descent without a library: forward pass, gradient with respect to the input,
// and steps.  Without cuBLAS all steps of an attack can be one CUDA graph.

// ------------------------------------------------------------------------------------------ layers
// A thread has a tile of SAMPLES samples and COLUMNS outputs, so that what it reads once is used
// several times, and sums over a slice of the inner axis; slices are added up by `activate` or
// `gate`.  Unrolled loops read ahead: what waits for memory is the latency.
#define SAMPLES 8
#define COLUMNS 4

#ifdef __CUDACC__
#define UNROLL(times) _Pragma(#times)
#else
#define UNROLL(times)
#endif

__device__ int smaller(int a, int b) {
    return a < b ? a : b;
}

// partial[s, n, j] = sum over k in slice s of  x[n, k] * weights[k, j]
extern "C" __global__ void product(
    i64 threads, const real *x, const real *weights, real *partial, int samples, int inner,
    int columns, int slices) {
    i64 rest = thread_number();
    if (rest >= threads) return;
    int width = (columns + COLUMNS - 1) / COLUMNS;  // the columns of a thread are that far apart
    int j = digit(&rest, width), n = SAMPLES * digit(&rest, (samples + SAMPLES - 1) / SAMPLES);
    int slice = (int)rest;
    int first = (int)((i64)inner * slice / slices), last = (int)((i64)inner * (slice + 1) / slices);
    const real *rows[SAMPLES];
    int places[COLUMNS];
    real sums[SAMPLES][COLUMNS];
    for (int c = 0; c < COLUMNS; c++) places[c] = smaller(j + c * width, columns - 1);
    for (int i = 0; i < SAMPLES; i++) {
        rows[i] = x + (i64)smaller(n + i, samples - 1) * inner;
        for (int c = 0; c < COLUMNS; c++) sums[i][c] = 0;
    }
    UNROLL(unroll 4)
    for (int k = first; k < last; k++) {
        const real *line = weights + (i64)k * columns;
        real weight[COLUMNS];
        for (int c = 0; c < COLUMNS; c++) weight[c] = line[places[c]];
        for (int i = 0; i < SAMPLES; i++) {
            real value = rows[i][k];
            for (int c = 0; c < COLUMNS; c++) sums[i][c] += value * weight[c];
        }
    }
    for (int i = 0; i < SAMPLES; i++)
        for (int c = 0; c < COLUMNS; c++)
            if (n + i < samples && j + c * width < columns)
                partial[((i64)slice * samples + n + i) * columns + j + c * width] = sums[i][c];
}

__device__ real total(const real *partial, i64 t, i64 threads, int slices) {
    real sum = 0;
    UNROLL(unroll 8)
    for (int slice = 0; slice < slices; slice++) sum += partial[slice * threads + t];
    return sum;
}

// out[n, j] = sum over s of partial[s, n, j] + bias[j], or the ReLU of it
extern "C" __global__ void activate(
    i64 threads, const real *partial, const real *bias, real *out, int slices, int columns,
    int relu) {
    i64 t = thread_number(), rest = t;
    if (t >= threads) return;
    real f = total(partial, t, threads, slices) + bias[digit(&rest, columns)];
    out[t] = relu ? f * (real)(f > 0) : f;
}

// out[t] = sum over s of partial[s, t]; 0 where an activation is 0
extern "C" __global__ void gate(
    i64 threads, const real *partial, const real *activations, real *out, int slices, int gated) {
    i64 t = thread_number();
    if (t >= threads) return;
    real sum = total(partial, t, threads, slices);
    out[t] = gated ? sum * (real)(activations[t] > 0) : sum;
}

// out[n, o, i, j] = bias[o] + sum over c, u, v of  filters[o, c, u, v]
//     * image[n, c, i * down - top + u, j * across - left + v],  or the ReLU of it
// A thread has one pixel and CHANNELS of the outputs o.
#define CHANNELS 4

extern "C" __global__ void convolve(
    i64 threads, const real *image, const real *filters, const real *bias, real *out, int channels,
    int height, int width, int outputs, int rows, int columns, int window_height, int window_width,
    int down, int across, int top, int left, int relu) {
    i64 n = thread_number();
    if (n >= threads) return;
    int j = digit(&n, columns), i = digit(&n, rows);
    int o = CHANNELS * digit(&n, (outputs + CHANNELS - 1) / CHANNELS);
    int y = i * down - top, x = j * across - left, filter = channels * window_height * window_width;
    int first_u = y < 0 ? -y : 0, last_u = smaller(window_height, height - y);
    int first_v = x < 0 ? -x : 0, last_v = smaller(window_width, width - x);
    real sums[CHANNELS];
    for (int k = 0; k < CHANNELS; k++) sums[k] = o + k < outputs ? bias[o + k] : (real)0;
    for (int c = 0; c < channels; c++)
        for (int u = first_u; u < last_u; u++) {
            const real *pixels = image + ((n * channels + c) * height + y + u) * width + x;
            const real *weights = filters + o * filter + (c * window_height + u) * window_width;
            UNROLL(unroll 4)
            for (int v = first_v; v < last_v; v++)
                for (int k = 0; k < CHANNELS; k++)
                    if (o + k < outputs) sums[k] += weights[k * filter + v] * pixels[v];
        }
    for (int k = 0; k < CHANNELS; k++)
        if (o + k < outputs)
            out[((n * outputs + o + k) * rows + i) * columns + j] =
                relu ? sums[k] * (real)(sums[k] > 0) : sums[k];
}

// The transpose of `convolve`, without the bias: each pixel is the sum over all windows that it is
// in; 0 where an activation is 0.  A thread has one pixel and CHANNELS of the channels c.
extern "C" __global__ void convolve_back(
    i64 threads, const real *gradient, const real *filters, const real *activations, real *image,
    int channels, int height, int width, int outputs, int rows, int columns, int window_height,
    int window_width, int down, int across, int top, int left, int gated) {
    i64 n = thread_number();
    if (n >= threads) return;
    int px = digit(&n, width), py = digit(&n, height), x = px + left, y = py + top;
    int c = CHANNELS * digit(&n, (channels + CHANNELS - 1) / CHANNELS);
    int filter = window_height * window_width;
    // From the first window that contains the pixel to the last that starts at or before it.
    int first_i = y < window_height ? 0 : (y - window_height) / down + 1;
    int first_j = x < window_width ? 0 : (x - window_width) / across + 1;
    int last_i = smaller(rows - 1, y / down), last_j = smaller(columns - 1, x / across);
    real sums[CHANNELS];
    for (int k = 0; k < CHANNELS; k++) sums[k] = 0;
    for (int i = first_i; i <= last_i; i++)
        for (int j = first_j; j <= last_j; j++) {
            const real *from = gradient + n * outputs * rows * columns + i * columns + j;
            int place = (y - i * down) * window_width + x - j * across;
            const real *weights = filters + (i64)c * filter + place;
            UNROLL(unroll 4)
            for (int o = 0; o < outputs; o++) {
                real g = from[o * rows * columns];
                for (int k = 0; k < CHANNELS; k++)
                    if (c + k < channels) sums[k] += g * weights[(o * channels + k) * filter];
            }
        }
    for (int k = 0; k < CHANNELS; k++) {
        if (c + k >= channels) return;
        i64 t = ((n * channels + c + k) * height + py) * width + px;
        image[t] = gated ? sums[k] * (real)(activations[t] > 0) : sums[k];
    }
}

// -------------------------------------------------------------------------------- loss and margins
// Gradient of the log-odds of an error, log sum_{s != y} exp(f_s) - f_y; a sample a thread.
extern "C" __global__ void odds(
    i64 threads, const real *logits, const i64 *y, real *gradient, int classes) {
    i64 n = thread_number();
    if (n >= threads) return;
    const real *f = logits + n * classes;
    real *g = gradient + n * classes;
    int own = (int)y[n], largest = own ? 0 : classes - 1;
    for (int s = 0; s < classes; s++)
        if (s != own && f[s] > f[largest]) largest = s;
    real sum = 0;
    for (int s = 0; s < classes; s++)
        if (s != own) sum += g[s] = exp(f[s] - f[largest]);
    for (int s = 0; s < classes; s++) g[s] = s == own ? (real)-1 : g[s] / sum;
}

// Whether the margin f_y - max_{s != y} f_s of each sample is smaller than before; keeps it.
extern "C" __global__ void smaller_margin(
    i64 threads, const real *logits, const i64 *y, real *margins, bool *smaller, int classes) {
    i64 n = thread_number();
    if (n >= threads) return;
    const real *f = logits + n * classes;
    int own = (int)y[n], largest = own ? 0 : classes - 1;
    for (int s = 0; s < classes; s++)
        if (s != own && f[s] > f[largest]) largest = s;
    real margin = f[own] - f[largest];
    smaller[n] = margin < margins[n];
    if (smaller[n]) margins[n] = margin;
}

// Copy the points that are better than the best so far.
extern "C" __global__ void keep_better(
    i64 threads, const bool *better, const real *Z, real *best, int pixels) {
    i64 t = thread_number();
    if (t >= threads) return;
    if (better[t / pixels]) best[t] = Z[t];
}

// ------------------------------------------------------------------------------------------- steps
// One step of the l_inf attack: along the sign of the gradient, then into the ball and the box.
// Both clip coordinate by coordinate, so components of the gradient that point out of the box need
// not be removed first.
extern "C" __global__ void ascend_inf(
    i64 threads, const real *X, const real *gradient, const real *lo, const real *hi, real *Z,
    int boxed, int pixels, real step, real eps) {
    i64 t = thread_number();
    if (t >= threads) return;
    i64 pixel = t % pixels;
    real g = gradient[t], delta = Z[t] + step * (real)((g > 0) - (g < 0)) - X[t];
    delta = delta < -eps ? -eps : delta > eps ? eps : delta;
    real z = X[t] + delta;
    if (boxed) z = z < lo[pixel] ? lo[pixel] : z > hi[pixel] ? hi[pixel] : z;
    Z[t] = z;
}

// A step of the l_2 attack is five kernels, because lengths are needed: `inward`, `squares`,
// `ascend_2`, `squares`, `into_ball`.  A thread goes through every `segments`-th pixel of a sample,
// from its own number on; whoever needs the length adds up what the threads of the sample found.

// Set the components of the gradient that point out of the box to 0; the largest that is left.
extern "C" __global__ void inward(
    i64 threads, real *__restrict__ gradient, const real *__restrict__ Z,
    const real *__restrict__ lo, const real *__restrict__ hi, real *__restrict__ largest,
    int boxed, int pixels, int segments) {
    i64 t = thread_number(), n = t;
    if (t >= threads) return;
    int first = digit(&n, segments);
    real most = 0;
    UNROLL(unroll 4)
    for (int i = first; i < pixels; i += segments) {
        real g = gradient[n * pixels + i], z = Z[n * pixels + i];
        if (boxed && ((lo[i] >= z && g < 0) || (hi[i] <= z && g > 0))) g = 0;
        gradient[n * pixels + i] = g;
        g = g < 0 ? -g : g;
        if (g > most) most = g;
    }
    largest[t] = most;
}

// The largest of a sample over all segments, or 1 if all are 0.
__device__ real scale_of(const real *largest, i64 n, int segments) {
    real most = 0;
    UNROLL(unroll 8)
    for (int s = 0; s < segments; s++)
        if (largest[n * segments + s] > most) most = largest[n * segments + s];
    return most > 0 ? most : 1;
}

// The length of a sample in units of its largest component, 1 if all are 0.
__device__ real length_of(const real *sums, i64 n, int segments) {
    real sum = 0;
    UNROLL(unroll 8)
    for (int s = 0; s < segments; s++) sum += sums[n * segments + s];
    return sum > 0 ? sqrt(sum) : 1;
}

// Sums of squares, in units of the largest component: no square can over- or underflow to nothing.
extern "C" __global__ void squares(
    i64 threads, const real *vectors, const real *largest, real *sums, int pixels, int segments) {
    i64 t = thread_number(), n = t;
    if (t >= threads) return;
    int first = digit(&n, segments);
    real scale = scale_of(largest, n, segments), sum = 0;
    UNROLL(unroll 4)
    for (int i = first; i < pixels; i += segments) {
        real v = vectors[n * pixels + i] / scale;
        sum += v * v;
    }
    sums[t] = sum;
}

// Z becomes Z - X + step * gradient / length; the largest component of that.
extern "C" __global__ void ascend_2(
    i64 threads, const real *__restrict__ X, const real *__restrict__ gradient,
    const real *__restrict__ largest, const real *__restrict__ sums, real *__restrict__ Z,
    real *__restrict__ largest_step, int pixels, int segments, real step) {
    i64 t = thread_number(), n = t;
    if (t >= threads) return;
    int first = digit(&n, segments);
    real scale = scale_of(largest, n, segments), most = 0;
    real factor = step / length_of(sums, n, segments);
    UNROLL(unroll 4)
    for (int i = first; i < pixels; i += segments) {
        i64 place = n * pixels + i;
        real delta = Z[place] + factor * (gradient[place] / scale) - X[place];
        Z[place] = delta;
        delta = delta < 0 ? -delta : delta;
        if (delta > most) most = delta;
    }
    largest_step[t] = most;
}

// Z, so far the difference to X, becomes X plus that, cut to the ball and then to the box.
extern "C" __global__ void into_ball(
    i64 threads, const real *X, const real *largest, const real *sums, const real *lo,
    const real *hi, real *Z, int boxed, int pixels, int segments, real eps) {
    i64 t = thread_number(), n = t;
    if (t >= threads) return;
    int pixel = digit(&n, pixels);
    real length = scale_of(largest, n, segments) * length_of(sums, n, segments);
    real z = X[t] + Z[t] * (length > eps ? eps / length : (real)1);
    if (boxed) z = z < lo[pixel] ? lo[pixel] : z > hi[pixel] ? hi[pixel] : z;
    Z[t] = z;
}
