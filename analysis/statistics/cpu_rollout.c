/* The fused CPU path, in C: a step of rollout, of which no map is made. attention_rollout.py says the same in torch.
 *
 * Shapes: g heads of an image, t queries, N tokens.
 */

#include <math.h>

#include "cpu_vectors.h"

/* factor * softmax(row) is added to the sums; the row, which ends with -inf, is used up. */
static void add_softmax(float *row, int64_t padded, float factor, float *sums) {
    Lanes most = (Lanes){0} - INFINITY;
    for (int64_t j = 0; j < padded; j += LANES) {
        const Lanes here = load(row + j);
        most = choose(here > most, here, most);
    }
    float largest = most[0];
    for (int k = 1; k < LANES; k++) largest = most[k] > largest ? most[k] : largest;
    double sum = 0;
    for (int64_t start = 0; start < padded; start += PIECE) {
        const int64_t end = start + PIECE < padded ? start + PIECE : padded;
        Lanes piece = {0};
        for (int64_t j = start; j < end; j += LANES) {
            const Lanes u = exp_or_zero(load(row + j) - largest);
            store(row + j, u);
            piece += u;
        }
        sum += sum_lanes(piece);
    }
    const float each = (float)(factor / sum);
    for (int64_t j = 0; j < padded; j += LANES) store(sums + j, load(sums + j) + each * load(row + j));
}

/* sum_hi r_i p_hij is added to `found` (N), from scores (g, t, N) and the weights r of the queries (t). There is room for
 * (threads, 2, padded), where padded is N rounded up to a multiple of LANES. */
void add_rows(const float *scores, int64_t heads, int64_t queries, int64_t tokens, int64_t padded, const float *weights,
              int64_t threads, float *room, float *found) {
    const int64_t rows = heads * queries;
#pragma omp parallel for schedule(static) num_threads((int)threads) if (rows * tokens > 32768)
    for (int64_t thread = 0; thread < threads; thread++) {
        float *row = room + thread * 2 * padded, *sums = row + padded;
        memset(sums, 0, sizeof(float) * (size_t)padded);
        for (int64_t at = rows * thread / threads; at < rows * (thread + 1) / threads; at++) {
            copy_padded(row, scores + at * tokens, tokens, padded, -INFINITY);
            add_softmax(row, padded, weights[at % queries], sums);
        }
    }
    for (int64_t thread = 0; thread < threads; thread++)
        for (int64_t j = 0; j < tokens; j++) found[j] += room[(thread * 2 + 1) * padded + j];
}
