// What CuPy has no function for: windows of images, receptive fields, one step of an attack or of
// Adam.
//
// One thread makes one thing and reads nothing that another thread writes, so there is no barrier,
// no shared memory and no atomic, and results do not depend on the order of the threads.  No header
// is included: NVRTC compiles this file alone.  `REAL` is float or double; arrays are contiguous.

#ifndef REAL
#define REAL double
#endif

typedef REAL real;
typedef long long i64;

__device__ i64 thread_number() {
    return (i64)blockIdx.x * blockDim.x + threadIdx.x;
}

// Take the last digit off a number in a mixed base: `rest` keeps the others.
__device__ int digit(i64 *rest, int base) {
    int last = (int)(*rest % base);
    *rest /= base;
    return last;
}

// ------------------------------------------------------------------------------- images and windows
// Window (i, j) of an image starts at pixel (i * down - top, j * across - left); it is `tall` by
// `wide` and may stick out, where there are zeros.

// windows[n, i, j, c, u, v] = image[n, c, i * down - top + u, j * across - left + v]
extern "C" __global__ void unfold(
    i64 threads, const real *image, real *windows, int channels, int height, int width, int rows,
    int columns, int tall, int wide, int down, int across, int top, int left) {
    i64 t = thread_number(), rest = t;
    if (t >= threads) return;
    int v = digit(&rest, wide), u = digit(&rest, tall), c = digit(&rest, channels);
    int j = digit(&rest, columns), i = digit(&rest, rows);
    int y = i * down - top + u, x = j * across - left + v;
    bool inside = 0 <= y && y < height && 0 <= x && x < width;
    windows[t] = inside ? image[((rest * channels + c) * height + y) * width + x] : (real)0;
}

// The transpose of `unfold`: each pixel is the sum of what all windows hold of it.
extern "C" __global__ void fold(
    i64 threads, const real *windows, real *image, int channels, int height, int width, int rows,
    int columns, int tall, int wide, int down, int across, int top, int left) {
    i64 t = thread_number(), rest = t;
    if (t >= threads) return;
    int x = digit(&rest, width) + left, y = digit(&rest, height) + top, c = digit(&rest, channels);
    real sum = 0;
    // The first window that reaches the pixel, and on until one starts behind it.
    int first_i = y < tall ? 0 : (y - tall) / down + 1;
    int first_j = x < wide ? 0 : (x - wide) / across + 1;
    for (int i = first_i; i < rows && i * down <= y; i++)
        for (int j = first_j; j < columns && j * across <= x; j++) {
            i64 window = ((rest * rows + i) * columns + j) * channels + c;
            sum += windows[(window * tall + y - i * down) * wide + x - j * across];
        }
    image[t] = sum;
}

// ---------------------------------------------------------------------------------- receptive fields
// The gradients of the units of a convolution to the pixels that they see, from those of the layer
// before it: a unit is a sum over its window of units, each of which sees a field `jump` pixels
// after its neighbour's.
//
// after[n, i, j, o, c, u, v] = sum over m, a, b of  filters[o, m, a, b] * active[n, m, y, x]
//     * before[n or 0, y, x, m, c, u - a * jump_down, v - b * jump_across],
//     with (y, x) = (i * down - top + a, j * across - left + b)
extern "C" __global__ void grow(
    i64 threads, const real *before, const bool *active, const real *filters, real *after,
    int shared, int inputs, int height, int width, int before_tall, int before_wide, int jump_down,
    int jump_across, int outputs, int rows, int columns, int kernel_tall, int kernel_wide, int down,
    int across, int top, int left, int colors, int tall, int wide) {
    i64 t = thread_number(), n = t;
    if (t >= threads) return;
    int v = digit(&n, wide), u = digit(&n, tall), c = digit(&n, colors), o = digit(&n, outputs);
    int j = digit(&n, columns), i = digit(&n, rows);
    real sum = 0;
    for (int a = 0; a < kernel_tall; a++) {
        int y = i * down - top + a, before_u = u - a * jump_down;
        if (y < 0 || y >= height || before_u < 0 || before_u >= before_tall) continue;
        for (int b = 0; b < kernel_wide; b++) {
            int x = j * across - left + b, before_v = v - b * jump_across;
            if (x < 0 || x >= width || before_v < 0 || before_v >= before_wide) continue;
            for (int m = 0; m < inputs; m++) {
                if (!active[((n * inputs + m) * height + y) * width + x]) continue;
                i64 unit = (((shared ? 0 : n) * height + y) * width + x) * inputs + m;
                i64 pixel = ((unit * colors + c) * before_tall + before_u) * before_wide + before_v;
                real weight = filters[((o * inputs + m) * kernel_tall + a) * kernel_wide + b];
                sum += weight * before[pixel];
            }
        }
    }
    after[t] = sum;
}

// -------------------------------------------------------------------------------- attack, optimiser
// One step of the l_inf attack: along the sign of the gradient, back into the ball and into the box.
// The box stops each coordinate by itself, so none needs to be told not to climb out.
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

// Adam; `first` and `second` are how much of a new gradient its running means take.
extern "C" __global__ void adam(
    i64 threads, real *array, real *mean, real *square, const real *gradient, real first,
    real second, real scale, real epsilon) {
    i64 t = thread_number();
    if (t >= threads) return;
    real g = gradient[t];
    real m = mean[t] + first * (g - mean[t]);
    real v = square[t] + second * (g * g - square[t]);
    mean[t] = m;
    square[t] = v;
    array[t] -= scale * m / (sqrt(v) + epsilon);
}
