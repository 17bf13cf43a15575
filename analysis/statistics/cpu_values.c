/* The fused CPU path, in C: what the heads' parts of the output are, alone and together. values.py says the same in torch.
 *
 * Shapes: H heads, t tokens, D width of a head, C width of the model.
 */

#include <math.h>

#include "cpu_vectors.h"

enum { WIDTH = 128, MOST_HEADS = 256 };

/* Of every head's part of the output (H, t, C), `stride` numbers from head to head: its norm (H, t), and its product with
 * the sum of all parts, summed over the tokens: (H). */
void norms_and_products(const float *parts, int64_t heads, int64_t stride, int64_t tokens, int64_t width, int64_t threads,
                        float *norms, double *products) {
    (void)threads; /* without OpenMP */
#pragma omp parallel for schedule(static) num_threads((int)threads) reduction(+ : products[:heads]) if (heads * tokens * width > 32768)
    for (int64_t token = 0; token < tokens; token++) {
        double squares[MOST_HEADS] = {0}; /* fused_cpu.py asks for no more */
        for (int64_t start = 0; start < width; start += WIDTH) {
            const int64_t count = start + WIDTH < width ? WIDTH : width - start;
            float output[WIDTH] = {0};
            for (int64_t head = 0; head < heads; head++) {
                const float *restrict part = parts + head * stride + token * width + start;
#pragma omp simd
                for (int64_t c = 0; c < count; c++) output[c] += part[c];
            }
            for (int64_t head = 0; head < heads; head++) {
                const float *restrict part = parts + head * stride + token * width + start;
                float square = 0, product = 0;
#pragma omp simd reduction(+ : square, product)
                for (int64_t c = 0; c < count; c++) {
                    square += part[c] * part[c];
                    product += part[c] * output[c];
                }
                squares[head] += square;
                products[head] += product;
            }
        }
        for (int64_t head = 0; head < heads; head++) norms[head * tokens + token] = (float)sqrt(squares[head]);
    }
}

/* Of two heads' vectors x and y (t, D), sum_cd (x^T y)_cd factors_cd, for LANES of the columns c of x. */
static double product_of_columns(const float *x, const float *y, int64_t tokens, int64_t width, const float *factors,
                                 int64_t row_of_factors) {
    double total = 0;
    for (int64_t start = 0; start < tokens; start += PIECE) {
        const int64_t end = start + PIECE < tokens ? start + PIECE : tokens;
        for (int64_t d = 0; d < width; d += LANES) {
            Lanes sums[LANES] = {{0}}, found = {0}; /* in a register each */
            for (int64_t i = start; i < end; i++) {
                const float *column = x + i * width;
                const Lanes row = load(y + i * width + d);
#pragma GCC unroll 16
                for (int c = 0; c < LANES; c++) sums[c] += column[c] * row;
            }
#pragma GCC unroll 16
            for (int c = 0; c < LANES; c++) found += sums[c] * load(factors + c * row_of_factors + d);
            total += sum_lanes(found);
        }
    }
    return total;
}

/* What the parts of every two heads have in common, sum_i v_hi W_h . v_gi W_g for the vectors v (H, t, D), is added to the
 * totals (H) of both. The factors (H D, H D) are W^T W; D is a multiple of LANES; there is room for (H, H, D / LANES). */
void products_of_parts(const float *vectors, int64_t heads, int64_t tokens, int64_t width, const float *factors, int64_t threads,
                       double *room, double *totals) {
    const int64_t slices = width / LANES, units = heads * heads * slices, size = tokens * width;
    (void)threads; /* without OpenMP */
#pragma omp parallel for schedule(static, 1) num_threads((int)threads) if (units * size * LANES > 1 << 20)
    for (int64_t unit = 0; unit < units; unit++) {
        const int64_t second = unit / slices / heads, first = unit / slices % heads, at = unit % slices * LANES;
        const float *of_two = factors + (first * width + at) * heads * width + second * width;
        if (first < second)
            room[unit] = product_of_columns(vectors + first * size + at, vectors + second * size, tokens, width, of_two, heads * width);
    }
    for (int64_t unit = 0; unit < units; unit++) {
        const int64_t second = unit / slices / heads, first = unit / slices % heads;
        if (first < second) totals[first] += room[unit], totals[second] += room[unit];
    }
}
