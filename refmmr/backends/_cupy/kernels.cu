// What CuPy has no function for: windows of images, receptive fields, one step of an attack or of
// Adam, and cutting polygons.
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

// ------------------------------------------------------------------------------------------ polygons
// The corners of all polygons lie one polygon after the other; those of polygon p are `starts[p]`
// to `starts[p + 1]`, counter-clockwise.  Row r of `values` has what each of `units` functions is
// at corner r, 0 where its sign is not certain.  All arithmetic is that of the reference, operation
// by operation: the __d..._rn functions are never contracted to a fused multiply-add.

// Does a unit change sign on a polygon?
extern "C" __global__ void crosses(
    i64 threads, const i64 *starts, const double *values, bool *crossing, int units) {
    i64 t = thread_number(), p = t;
    if (t >= threads) return;
    int unit = digit(&p, units);
    bool above = false, below = false;
    for (i64 r = starts[p]; r < starts[p + 1]; r++) {
        above = above || values[r * units + unit] > 0;
        below = below || values[r * units + unit] < 0;
    }
    crossing[t] = above && below;
}

// Is a unit active on a polygon?
extern "C" __global__ void signs(
    i64 threads, const i64 *starts, const double *values, bool *active, int units) {
    i64 t = thread_number(), p = t;
    if (t >= threads) return;
    int unit = digit(&p, units);
    bool above = false;
    for (i64 r = starts[p]; r < starts[p + 1]; r++)
        above = above || values[r * units + unit] > 0;
    active[t] = above;
}

// How many corners the positive and the negative part of each polygon have; a polygon that is not
// cut is its own first part, and has no second one.
extern "C" __global__ void count_corners(
    i64 threads, const i64 *starts, const i64 *cell, const bool *crossing,
    const double *values, i64 *sizes, int units, int unit) {
    i64 p = thread_number();
    if (p >= threads) return;
    i64 begin = starts[p], end = starts[p + 1], above = 0, below = 0, on = 0, cuts = 0;
    if (crossing[cell[p] * units + unit])
        for (i64 r = begin; r < end; r++) {
            double here = values[r * units + unit];
            double next = values[(r + 1 < end ? r + 1 : begin) * units + unit];
            above += here > 0;
            below += here < 0;
            on += here == 0;
            cuts += (here > 0 && next < 0) || (here < 0 && next > 0);
        }
    bool cut = above > 0 && below > 0;
    sizes[2 * p] = cut ? above + on + cuts : end - begin;
    sizes[2 * p + 1] = cut ? below + on + cuts : 0;
}

// Say where the corners of the parts come from: on the way from corner `first` to corner `second`
// of the polygons before, or at both of them.  Part 2 p + side begins at `parts[2 p + side]`.
extern "C" __global__ void cut(
    i64 threads, const i64 *starts, const i64 *parts, const i64 *sizes, const i64 *cell,
    const double *corners, const i64 *walls, const double *values, i64 *first, i64 *second,
    double *way, i64 *new_walls, i64 *new_cell, int units, int unit, int wall) {
    i64 p = thread_number();
    if (p >= threads) return;
    i64 begin = starts[p], end = starts[p + 1];
    bool whole = sizes[2 * p + 1] == 0;
    for (int side = 0; side < (whole ? 1 : 2); side++) {
        i64 k = parts[2 * p + side];
        double sign = side == 0 ? 1 : -1;
        for (i64 r = begin; r < end; r++) {
            i64 next = r + 1 < end ? r + 1 : begin;
            double f = values[r * units + unit], g = values[next * units + unit];
            bool stays = whole || g * sign >= 0, crossed = !whole && ((f > 0 && g < 0) || (f < 0 && g > 0));
            if (whole || f * sign >= 0) {
                first[k] = second[k] = r;
                way[k] = 0;
                new_walls[k] = stays || crossed ? walls[r] : wall;
                new_cell[k++] = cell[p];
            }
            if (crossed) {
                // From a fixed end, so that both polygons at this edge find the same point.
                double x = corners[2 * r], next_x = corners[2 * next];
                bool forward =
                    x < next_x || (x == next_x && corners[2 * r + 1] < corners[2 * next + 1]);
                double start = forward ? f : g, stop = forward ? g : f;
                first[k] = forward ? r : next;
                second[k] = forward ? next : r;
                way[k] = __ddiv_rn(start, __dsub_rn(start, stop));
                new_walls[k] = stays ? walls[r] : wall;
                new_cell[k++] = cell[p];
            }
        }
    }
}

// Coordinates (the first two columns) and values at the corners that `cut` told of.
extern "C" __global__ void interpolate(
    i64 threads, const i64 *first, const i64 *second, const double *way, const i64 *cell,
    const double *corners, const double *values, const double *errors, double *new_corners,
    double *new_values, int units, int unit) {
    i64 t = thread_number(), k = t;
    if (t >= threads) return;
    int column = digit(&k, units + 2) - 2;
    bool place = column < 0;
    const double *from = place ? corners + column + 2 : values + column;
    int stride = place ? 2 : units;
    double a = from[first[k] * stride], b = from[second[k] * stride], value = a;
    if (first[k] != second[k]) {
        value = __dadd_rn(a, __dmul_rn(way[k], __dsub_rn(b, a)));
        if (!place) {
            double error = errors[cell[k] * units + column];
            bool certain = value > error || -value > error;
            value = certain && column != unit ? value : 0;
        }
    }
    if (place)
        new_corners[k * 2 + column + 2] = value;
    else
        new_values[k * units + column] = value;
}
