// Kernels that CuPy has no function for: windows of images, patches of receptive fields, Adam.
// `attack.cu` and `objective.cu` follow in the same module and use what is defined here.
//
// A thread computes a number of the result, or a few, and reads nothing that another thread writes,
// so there is no barrier, no shared memory and no atomic, and results do not depend on the order of
// the threads.  No header is included: NVRTC compiles these files alone.  `REAL` is float or
// double; arrays are contiguous.

#ifndef REAL
#define REAL double
#endif

typedef REAL real;
typedef long long i64;

__device__ i64 thread_number() {
    return (i64)blockIdx.x * blockDim.x + threadIdx.x;
}

// Most of the time of a copy is the arithmetic of its indices.  So a thread does the same entry of up
// to this many samples.
#define REPEATS 8

// The last digit of a number in a mixed base; `rest` keeps the digits before it.  A division of 64
// bits takes several times as long as one of 32, which is enough for all but the largest arrays.
__device__ int digit(i64 *rest, int base) {
    if (*rest <= 0x7fffffff) {
        unsigned number = (unsigned)*rest, quotient = number / (unsigned)base;
        *rest = quotient;
        return (int)(number - quotient * (unsigned)base);
    }
    int last = (int)(*rest % base);
    *rest /= base;
    return last;
}

// ------------------------------------------------------------------------------ images and windows
// Window (i, j) of an image starts at pixel (i * down - top, j * across - left).  It is
// window_height x window_width and may reach outside of the image, where there are zeros.

// windows[n, i, j, c, u, v] = image[n, c, i * down - top + u, j * across - left + v],
// or, with `mask`, 1 where that is positive and 0 elsewhere
extern "C" __global__ void unfold(
    i64 threads, const real *__restrict__ image, real *__restrict__ windows, int samples,
    int channels, int height, int width, int rows, int columns, int window_height,
    int window_width, int down, int across, int top, int left, int mask) {
    i64 t = thread_number(), first = t;
    if (t >= threads) return;
    int v = digit(&first, window_width), u = digit(&first, window_height);
    int c = digit(&first, channels), j = digit(&first, columns), i = digit(&first, rows);
    i64 size = (i64)rows * columns * channels * window_height * window_width;
    int y = i * down - top + u, x = j * across - left + v;
    bool inside = 0 <= y && y < height && 0 <= x && x < width;
    i64 from = (c * height + y) * width + x, to = t - first * size;
    for (i64 n = REPEATS * first; n < samples && n < REPEATS * (first + 1); n++) {
        real value = inside ? image[n * channels * height * width + from] : (real)0;
        windows[n * size + to] = mask ? (real)(value > 0) : value;
    }
}

// The transpose of `unfold`: each pixel is the sum over all windows that it is in.
extern "C" __global__ void fold(
    i64 threads, const real *windows, real *image, int channels, int height, int width, int rows,
    int columns, int window_height, int window_width, int down, int across, int top, int left) {
    i64 t = thread_number(), rest = t;
    if (t >= threads) return;
    int x = digit(&rest, width) + left, y = digit(&rest, height) + top, c = digit(&rest, channels);
    real sum = 0;
    // From the first window that contains the pixel to the last that starts at or before it.
    int first_i = y < window_height ? 0 : (y - window_height) / down + 1;
    int first_j = x < window_width ? 0 : (x - window_width) / across + 1;
    for (int i = first_i; i < rows && i * down <= y; i++)
        for (int j = first_j; j < columns && j * across <= x; j++) {
            i64 window = ((rest * rows + i) * columns + j) * channels + c;
            sum += windows[(window * window_height + y - i * down) * window_width + x - j * across];
        }
    image[t] = sum;
}

// ----------------------------------------------------------------------------------------- patches
// Gradients of the units of a convolution with respect to the pixels of their receptive fields,
// from those of the layer before: a unit is a weighted sum over its window of units, whose
// receptive fields lie `jump` pixels apart.
//
// after[n, i, j, o, c, u, v] = sum over m, a, b of  filters[o, m, a, b] * active[n, m, y, x]
//     * before[n or 0, y, x, m, c, u - a * jump_down, v - b * jump_across],
//     with (y, x) = (i * down - top + a, j * across - left + b)
extern "C" __global__ void extend_patches(
    i64 threads, const real *before, const bool *active, const real *filters, real *after,
    int shared, int inputs, int height, int width, int before_height, int before_width,
    int jump_down, int jump_across, int outputs, int rows, int columns, int kernel_height,
    int kernel_width, int down, int across, int top, int left, int colors, int after_height,
    int after_width) {
    i64 t = thread_number(), n = t;
    if (t >= threads) return;
    int v = digit(&n, after_width), u = digit(&n, after_height), c = digit(&n, colors);
    int o = digit(&n, outputs), j = digit(&n, columns), i = digit(&n, rows);
    real sum = 0;
    for (int a = 0; a < kernel_height; a++) {
        int y = i * down - top + a, before_u = u - a * jump_down;
        if (y < 0 || y >= height || before_u < 0 || before_u >= before_height) continue;
        for (int b = 0; b < kernel_width; b++) {
            int x = j * across - left + b, before_v = v - b * jump_across;
            if (x < 0 || x >= width || before_v < 0 || before_v >= before_width) continue;
            for (int m = 0; m < inputs; m++) {
                if (!active[((n * inputs + m) * height + y) * width + x]) continue;
                i64 unit = (((shared ? 0 : n) * height + y) * width + x) * inputs + m;
                i64 line = (unit * colors + c) * before_height + before_u;
                real weight = filters[((o * inputs + m) * kernel_height + a) * kernel_width + b];
                sum += weight * before[line * before_width + before_v];
            }
        }
    }
    after[t] = sum;
}

// --------------------------------------------------------------------------------------- optimiser
// Adam; `first` and `second` are the weights of a new gradient in its two running means.
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
