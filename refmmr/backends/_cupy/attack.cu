// Projected gradient descent without a library: forward pass, gradient with respect to the input,
// and steps.  Without cuBLAS all steps of an attack can be one CUDA graph.

// ------------------------------------------------------------------------------------------ layers
// A thread sums over a slice of the inner axis for SAMPLES samples, which share its weights; slices
// are added up by `activate` or `gate`.
#define SAMPLES 8

#ifdef __CUDACC__
#define UNROLL _Pragma("unroll 8")
#else
#define UNROLL
#endif

// partial[s, n, j] = sum over k in slice s of  x[n, k] * weights[k, j]
extern "C" __global__ void product(
    i64 threads, const real *x, const real *weights, real *partial, int samples, int inner,
    int columns, int slices) {
    i64 rest = thread_number();
    if (rest >= threads) return;
    int j = digit(&rest, columns), n = SAMPLES * digit(&rest, (samples + SAMPLES - 1) / SAMPLES);
    int slice = (int)rest;
    int first = (int)((i64)inner * slice / slices), last = (int)((i64)inner * (slice + 1) / slices);
    const real *rows[SAMPLES];
    real sums[SAMPLES];
    for (int i = 0; i < SAMPLES; i++) {
        rows[i] = x + (i64)(n + i < samples ? n + i : samples - 1) * inner;
        sums[i] = 0;
    }
    UNROLL
    for (int k = first; k < last; k++) {
        real weight = weights[(i64)k * columns + j];
        for (int i = 0; i < SAMPLES; i++) sums[i] += rows[i][k] * weight;
    }
    for (int i = 0; i < SAMPLES; i++)
        if (n + i < samples) partial[((i64)slice * samples + n + i) * columns + j] = sums[i];
}

__device__ real total(const real *partial, i64 t, i64 threads, int slices) {
    real sum = 0;
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
extern "C" __global__ void convolve(
    i64 threads, const real *image, const real *filters, const real *bias, real *out, int channels,
    int height, int width, int outputs, int rows, int columns, int window_height, int window_width,
    int down, int across, int top, int left, int relu) {
    i64 t = thread_number(), n = t;
    if (t >= threads) return;
    int j = digit(&n, columns), i = digit(&n, rows), o = digit(&n, outputs);
    int y = i * down - top, x = j * across - left;
    real sum = 0;
    for (int c = 0; c < channels; c++) {
        const real *filter = filters + (o * channels + c) * window_height * window_width;
        const real *plane = image + (n * channels + c) * height * width;
        for (int u = 0; u < window_height; u++) {
            if (y + u < 0 || y + u >= height) continue;
            for (int v = 0; v < window_width; v++)
                if (0 <= x + v && x + v < width)
                    sum += filter[u * window_width + v] * plane[(y + u) * width + x + v];
        }
    }
    sum += bias[o];
    out[t] = relu ? sum * (real)(sum > 0) : sum;
}

// The transpose of `convolve`, without the bias: each pixel is the sum over all windows that it is
// in; 0 where an activation is 0.
extern "C" __global__ void convolve_back(
    i64 threads, const real *gradient, const real *filters, const real *activations, real *image,
    int channels, int height, int width, int outputs, int rows, int columns, int window_height,
    int window_width, int down, int across, int top, int left, int gated) {
    i64 t = thread_number(), n = t;
    if (t >= threads) return;
    int x = digit(&n, width) + left, y = digit(&n, height) + top, c = digit(&n, channels);
    if (gated && !(activations[t] > 0)) {
        image[t] = 0;
        return;
    }
    real sum = 0;
    // From the first window that contains the pixel to the last that starts at or before it.
    int first_i = y < window_height ? 0 : (y - window_height) / down + 1;
    int first_j = x < window_width ? 0 : (x - window_width) / across + 1;
    for (int o = 0; o < outputs; o++) {
        const real *filter = filters + (o * channels + c) * window_height * window_width;
        const real *plane = gradient + (n * outputs + o) * rows * columns;
        for (int i = first_i; i < rows && i * down <= y; i++)
            for (int j = first_j; j < columns && j * across <= x; j++)
                sum += plane[i * columns + j] * filter[(y - i * down) * window_width + x - j * across];
    }
    image[t] = sum;
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
    i64 threads, real *gradient, const real *Z, const real *lo, const real *hi, real *largest,
    int boxed, int pixels, int segments) {
    i64 t = thread_number(), n = t;
    if (t >= threads) return;
    int first = digit(&n, segments);
    real most = 0;
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
    for (int s = 0; s < segments; s++)
        if (largest[n * segments + s] > most) most = largest[n * segments + s];
    return most > 0 ? most : 1;
}

// The length of a sample in units of its largest component, 1 if all are 0.
__device__ real length_of(const real *sums, i64 n, int segments) {
    real sum = 0;
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
    for (int i = first; i < pixels; i += segments) {
        real v = vectors[n * pixels + i] / scale;
        sum += v * v;
    }
    sums[t] = sum;
}

// Z becomes Z - X + step * gradient / length; the largest component of that.
extern "C" __global__ void ascend_2(
    i64 threads, const real *X, const real *gradient, const real *largest, const real *sums,
    real *Z, real *largest_step, int pixels, int segments, real step) {
    i64 t = thread_number(), n = t;
    if (t >= threads) return;
    int first = digit(&n, segments);
    real scale = scale_of(largest, n, segments), length = length_of(sums, n, segments), most = 0;
    for (int i = first; i < pixels; i += segments) {
        i64 place = n * pixels + i;
        real delta = Z[place] + step * (gradient[place] / scale / length) - X[place];
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
