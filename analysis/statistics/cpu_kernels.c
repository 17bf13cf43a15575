/* The fused CPU path, in C: everything that is read off a row of attention or summed over rows, while the row is in a
 * core's cache.
 *
 * cpu_library.py compiles these files when they are first needed and fused_cpu.py calls them; tile.py says the same in torch.
 * cpu_values.c has what is made of the values, cpu_rollout.c a step of rollout. The definitions are in reference.py. Sums
 * over patches are float32 within PIECE patches, and double over the pieces; what is done once a row is double.
 *
 * Shapes: b images, H heads of them, g = b H, t queries, P patches, X tokens before them, N tokens, C width of the model.
 */

#include <math.h>

#include "cpu_vectors.h"

int64_t lanes(void) { return LANES; }

/* What a row is read into. A field that is not asked for is NULL. fused_cpu.py has the same list. */
typedef struct {
    int64_t images, heads, queries, patches, prefix, tokens; /* b, H, t, P, X, N */
    int64_t padded;                                          /* P rounded up to a multiple of LANES */
    int64_t columns, first;                                  /* patches in a line of the grid; which token the first query is */
    int64_t threads, parts;                                  /* how many to use; of an image's queries, to share them out */
    int64_t of_heads;                                        /* how many the layer has, where H is some of them */
    int64_t class_token, registers;                   /* its index, -1 for none; how many there are, last before the patches */
    int64_t keeps_weights;                            /* whether the scores become the weights */
    float *scores;          /* (g, t, P); may become the softmax over the patches alone */
    float *prefix_scores;   /* (g, t, X); becomes their weights in the whole row */
    const float *places;    /* (2, P), line and column of each patch */
    const float *distances; /* (t, P), in patches */
    const float *norms;     /* (g, N), of the projected values */
    float *share;           /* (g, t), the weight on all patches */
    float *room;            /* (threads, 2 H + 4, padded), for what a thread has at hand */
    float *sums;            /* (b parts, H, 2, padded + X), room */
    double *products_sums;  /* (b parts, H, H), room */
    float *entropy, *maximum, *spread, *distance, *centre; /* (g, N); centre (g, N, 2) */
    int64_t *argmaximum;
    float *on_prefix, *on_patches, *on_self, *on_class_token, *on_registers, *on_neighbours;
    float *weighted_sum, *weighted_on_prefix, *weighted_on_patches, *weighted_on_self, *weighted_on_class_token,
        *weighted_on_registers;
    /* Added to: */
    float *received, *weighted_received; /* (g, N), sum_i p_ij, and sum_i p_ij ||v_j W|| / weighted_sum_i */
    float *products, *mean_map;          /* (b, H, H), sum_ij p_ij q_ij of every two heads; (b, N, N), sum_h p_ij / of_heads */
} Rows;

/* Sums over the patches of a row, of u_j = exp(s_j - max s); the largest is left out of all. */
typedef struct {
    float largest;             /* max s */
    int64_t best;              /* where it is */
    double others, fall;       /* sum u_j, sum u_j (max s - s_j) */
    double distance, weighted; /* sum u_j d_j, sum u_j ||v_j W|| */
    double down, down_squared, across, across_squared; /* moments about the best patch */
} Sums;

/* What a thread has at hand of one image: rows go on to whole Lanes, with zeros or what is not read. */
typedef struct {
    float *weights;   /* (H, padded), of one query: the softmax over the patches */
    float *norms;     /* (H, padded), of the patches' projected values */
    float *places;    /* (2, padded) */
    float *distances; /* (padded), of one query */
    float *map;       /* (padded), of one query */
    int64_t lines;    /* of the grid */
    int64_t line, column; /* of the query, where it is a patch */
} Hand;

static Hand hand_of(const Rows *rows, int64_t thread) {
    const int64_t padded = rows->padded, heads = rows->heads;
    float *at = rows->room + thread * (2 * heads + 4) * padded;
    return (Hand){.weights = at,
                  .norms = at + heads * padded,
                  .places = at + 2 * heads * padded,
                  .distances = at + (2 * heads + 2) * padded,
                  .map = at + (2 * heads + 3) * padded,
                  .lines = rows->patches / rows->columns};
}

/* Copies a row of scores and ends it with -inf; finds the first of the largest. NaN is passed over. */
static void copy_and_find_largest(const float *from, int64_t count, float *scores, int64_t padded, float *largest,
                                  int64_t *best) {
    const Lanes none = (Lanes){0} - INFINITY;
    const int64_t whole = count - count % LANES;
    Lanes most = none;
    Whole block = {0}, at = {0}; /* of Lanes: which one is looked at, and which one the most of each lane is in */
    copy_padded(scores + whole, from + whole, count - whole, padded - whole, -INFINITY);
    for (int64_t j = 0; j < padded; j += LANES, block += 1) {
        const Lanes here = load(j < whole ? from + j : scores + j);
        __builtin_prefetch(from + count + j); /* the head's next query, whose row is read after those of other heads */
        store(scores + j, here);
        const Whole larger = here > most;
        most = choose(larger, here, most);
        at = (larger & block) | (~larger & at);
    }
    *largest = largest_lane(most);
    const Whole is_largest = most == *largest;
    *best = least_lane((is_largest & (at * LANES + number_of_lane())) | (~is_largest & INT32_MAX));
}

/* The scores of a row become u_j, without the largest. */
static Sums exponentials(const float *from, int64_t count, float *scores, int64_t padded, const float *places,
                         const float *distances, const float *norms) {
    Sums sums = {0};
    copy_and_find_largest(from, count, scores, padded, &sums.largest, &sums.best);
    const float largest = sums.largest;
    if (largest == -INFINITY) return sums;
    scores[sums.best] = -INFINITY;
    const float first_line = places ? places[sums.best] : 0, first_column = places ? places[padded + sums.best] : 0;
    for (int64_t start = 0; start < padded; start += PIECE) {
        const int64_t end = start + PIECE < padded ? start + PIECE : padded;
        Lanes others = {0}, fall = {0}, distance = {0}, weighted = {0};
        for (int64_t j = start; j < end; j += LANES) {
            const Lanes x = load(scores + j) - largest, u = exp_or_zero(x);
            store(scores + j, u);
            others += u;
            fall -= u * at_least(x);
            if (distances) distance += u * load(distances + j);
            if (norms) weighted += u * load(norms + j);
        }
        sums.others += sum_lanes(others);
        sums.fall += sum_lanes(fall);
        if (places) {
            Lanes down = {0}, down_squared = {0}, across = {0}, across_squared = {0};
            for (int64_t j = start; j < end; j += LANES) {
                const Lanes u = load(scores + j);
                const Lanes line = load(places + j) - first_line, column = load(places + padded + j) - first_column;
                const Lanes u_line = u * line, u_column = u * column;
                down += u_line;
                down_squared += u_line * line;
                across += u_column;
                across_squared += u_column * column;
            }
            sums.down += sum_lanes(down);
            sums.down_squared += sum_lanes(down_squared);
            sums.across += sum_lanes(across);
            sums.across_squared += sum_lanes(across_squared);
        }
        sums.distance += sum_lanes(distance);
        sums.weighted += sum_lanes(weighted);
    }
    if (!(largest < INFINITY)) sums.others = NAN;
    return sums;
}

/* log(1 + x) for x >= 0, in less time than `log1p`. */
static double log_of_1_and(double x) { return x < 1e-5 ? x - 0.5 * x * x : log(1 + x); }

/* Entropy of weights that sum to 1, by their logarithms. The largest is taken as 1 less the others: near 1, its logarithm
 * is lost in its rounding. */
static double small_entropy(const float *scores, int64_t count, double log_sum) {
    double found = 0, others = 0;
    int64_t best = 0;
    for (int64_t k = 1; k < count; k++)
        if (scores[k] > scores[best]) best = k;
    for (int64_t k = 0; k < count; k++) {
        const double log_weight = scores[k] - log_sum, weight = exp(log_weight);
        if (k == best || weight == 0) continue;
        others += weight;
        found -= weight * log_weight;
    }
    return found - exp(scores[best] - log_sum) * log1p(-others);
}

static double sum_of(const float *numbers, int64_t count) {
    double sum = 0;
    for (int64_t k = 0; k < count; k++) sum += numbers[k];
    return sum;
}

static double log_sum_of(const float *scores, int64_t count) {
    if (count == 1) return scores[0];
    double largest = -INFINITY, sum = 0;
    for (int64_t k = 0; k < count; k++) largest = scores[k] > largest ? scores[k] : largest;
    if (largest == -INFINITY) return sum_of(scores, count); /* NaN where one is among them */
    for (int64_t k = 0; k < count; k++) sum += exp(scores[k] - largest);
    return largest + log(sum);
}

/* The weights of the up to eight patches around the query. */
static double around(const float *weights, int64_t columns, const Hand *hand) {
    const int64_t line = hand->line, column = hand->column;
    double sum = 0;
    for (int64_t i = line - 1; i <= line + 1; i++)
        for (int64_t j = column - 1; j <= column + 1; j++)
            if (i >= 0 && i < hand->lines && j >= 0 && j < columns && (i != line || j != column))
                sum += weights[i * columns + j];
    return sum;
}

/* Returns 1 / weighted_sum, or 0 without norms. */
static double read_row(const Rows *rows, const Hand *hand, int64_t image, int64_t head, int64_t row) {
    const int64_t patches = rows->patches, padded = rows->padded, prefix = rows->prefix, columns = rows->columns;
    const int64_t group = image * rows->heads + head, at = group * rows->queries + row, token = rows->first + row;
    const int64_t out = group * rows->tokens + token, first_register = prefix - rows->registers;
    const float *norms = rows->norms ? rows->norms + group * rows->tokens : 0;
    const float *places = rows->places ? hand->places : 0, *distances = rows->distances ? hand->distances : 0;
    float *weights = hand->weights + head * padded, *before = rows->prefix_scores + at * prefix;

    Sums sums = exponentials(rows->scores + at * patches, patches, weights, padded, places, distances,
                             norms ? hand->norms + head * padded : 0);
    const int sees_patches = sums.largest > -INFINITY;
    const double sum = 1 + sums.others, of_patches = sum_of(weights, sees_patches ? 0 : patches);
    /* Of nothing but -inf, or NaN among them: the weights are 0, or NaN. */
    const double inverse = sees_patches ? 1 / sum : of_patches == -INFINITY ? 0 : NAN;
    if (sees_patches) weights[sums.best] = 1;
    for (int64_t j = 0; sees_patches && j < padded; j += LANES) store(weights + j, load(weights + j) * (float)inverse);
    for (int64_t j = 0; !sees_patches && j < padded; j++) weights[j] = j < patches ? (float)inverse : 0;
    if (rows->keeps_weights) memcpy(rows->scores + at * patches, weights, sizeof(float) * (size_t)patches);

    /* Patches and the tokens before them have a softmax each; the odds say how the row is divided between them. */
    const double log_others = log_of_1_and(sums.others);
    const double log_sum = sees_patches ? sums.largest + log_others : of_patches;
    const double log_sum_before = log_sum_of(before, prefix);
    const double log_odds = prefix ? log_sum - log_sum_before : isfinite(log_sum) ? INFINITY : NAN;
    const double odds = exp(-fabs(log_odds)), larger = 1 / (1 + odds), smaller = odds * larger;
    const double share = log_odds < 0 ? smaller : larger, rest = log_odds < 0 ? larger : smaller;
    const double best_weight = share * inverse;

    if (rows->entropy) {
        double found = isinf(log_odds) ? 0 : log_of_1_and(odds) + smaller * fabs(log_odds); /* of the two shares */
        if (share > 0 || isnan(share)) found += share * (log_others + sums.fall * inverse);
        if (prefix > 1 && log_odds != INFINITY) found += rest * small_entropy(before, prefix, log_sum_before);
        rows->entropy[out] = (float)found;
    }
    if (rows->places) {
        const double down = sums.down * inverse, across = sums.across * inverse;
        const double variance = (sums.down_squared + sums.across_squared) * inverse - down * down - across * across;
        const double none = sees_patches ? 0 : NAN;
        rows->centre[2 * out] = (float)(places[sums.best] + down + none);
        rows->centre[2 * out + 1] = (float)(places[padded + sums.best] + across + none);
        rows->spread[out] = (float)(variance < 0 ? none : sqrt(variance) + none);
    }
    if (rows->distance) {
        rows->distance[out] = sees_patches ? (float)((sums.distance + distances[sums.best]) * inverse) : NAN;
    }

    const double weighted_of_patches = norms ? share * inverse * (sums.weighted + norms[prefix + sums.best]) : 0;
    double weighted_before = 0;
    int64_t best_before = 0;
    for (int64_t k = 0; k < prefix; k++) {
        const int is_all = prefix == 1 || log_sum_before == -INFINITY;
        before[k] = is_all ? (float)rest : (float)(rest * exp(before[k] - log_sum_before));
        if (before[k] > before[best_before]) best_before = k;
        if (norms) weighted_before += before[k] * norms[k];
    }
    if (rows->maximum) {
        const int is_before = prefix && before[best_before] > best_weight;
        rows->maximum[out] = is_before ? before[best_before] : (float)best_weight;
        rows->argmaximum[out] = is_before ? best_before : sums.best + prefix;
    }
    const double own = token < prefix ? before[token] : share * weights[token - prefix];
    if (rows->on_prefix) {
        rows->on_prefix[out] = (float)sum_of(before, prefix);
        rows->on_patches[out] = (float)share;
        rows->on_self[out] = (float)own;
        if (rows->on_class_token) rows->on_class_token[out] = before[rows->class_token];
        if (rows->on_registers) rows->on_registers[out] = (float)sum_of(before + first_register, rows->registers);
        rows->on_neighbours[out] = token < prefix ? NAN : (float)(share * around(weights, columns, hand));
    }
    double inverse_total = 0;
    if (norms) {
        const double total = weighted_before + weighted_of_patches;
        double of_registers = 0;
        for (int64_t k = first_register; k < prefix; k++) of_registers += before[k] * norms[k];
        rows->weighted_sum[out] = (float)total;
        inverse_total = 1 / total;
        rows->weighted_on_prefix[out] = (float)(weighted_before * inverse_total);
        rows->weighted_on_patches[out] = (float)(weighted_of_patches * inverse_total);
        rows->weighted_on_self[out] = (float)(own * norms[token] * inverse_total);
        if (rows->weighted_on_class_token)
            rows->weighted_on_class_token[out] = (float)(before[rows->class_token] * norms[rows->class_token] * inverse_total);
        if (rows->weighted_on_registers) rows->weighted_on_registers[out] = (float)(of_registers * inverse_total);
    }
    rows->share[at] = (float)share;
    return inverse_total;
}

/* A row's weights are added to the sums over queries, (2, padded) of patches and then (2, X), the second time with the
 * factor. */
static void add_to_columns(const Rows *rows, const float *weights, int64_t at, float factor, float *sums) {
    const int64_t padded = rows->padded, prefix = rows->prefix;
    const float *before = rows->prefix_scores + at * prefix, share = rows->share[at];
    float *sums_before = sums + 2 * padded;
    for (int64_t k = 0; k < prefix; k++) {
        sums_before[k] += before[k];
        if (factor != 0) sums_before[prefix + k] += factor * before[k];
    }
    for (int64_t j = 0; j < padded; j += LANES) {
        const Lanes p = share * load(weights + j);
        store(sums + j, load(sums + j) + p);
        if (factor != 0) store(sums + padded + j, load(sums + padded + j) + factor * p);
    }
}

static void add_to_map(const Rows *rows, const Hand *hand, int64_t image, int64_t row) {
    const int64_t padded = rows->padded, prefix = rows->prefix, first = image * rows->heads * rows->queries + row;
    const float each = 1.0f / (float)rows->of_heads;
    float *restrict map = rows->mean_map + (image * rows->tokens + rows->first + row) * rows->tokens;
    for (int64_t head = 0; head < rows->heads; head++) {
        const float *before = rows->prefix_scores + (first + head * rows->queries) * prefix;
        for (int64_t k = 0; k < prefix; k++) map[k] += each * before[k];
    }
    for (int64_t j = 0; j < padded; j += LANES) {
        Lanes sum = {0};
        for (int64_t head = 0; head < rows->heads; head++)
            sum += rows->share[first + head * rows->queries] * load(hand->weights + head * padded + j);
        store(hand->map + j, each * sum);
    }
    const float *restrict found = hand->map;
    for (int64_t j = 0; j < rows->patches; j++) map[prefix + j] += found[j];
}

/* The products of a row with `count` others, each `padded` after the last. */
static inline __attribute__((always_inline)) void multiply(const float *row, const float *others, int64_t padded, const int count,
                                                           double *found) {
    for (int64_t start = 0; start < padded; start += PIECE) {
        const int64_t end = start + PIECE < padded ? start + PIECE : padded;
        Lanes sums[4] = {{0}, {0}, {0}, {0}};
        for (int64_t j = start; j < end; j += LANES) {
            const Lanes weights = load(row + j);
            for (int k = 0; k < count; k++) sums[k] += weights * load(others + k * padded + j);
        }
        for (int k = 0; k < count; k++) found[k] += sum_lanes(sums[k]);
    }
}

/* The product of each head's row with those of the heads from it on is added to the products (H, H). */
static void add_to_products(const Rows *rows, const Hand *hand, int64_t image, int64_t row, double *products) {
    const int64_t heads = rows->heads, padded = rows->padded, prefix = rows->prefix, stride = rows->queries;
    const int64_t first = image * heads * stride + row;
    for (int64_t head = 0; head < heads; head++) {
        const int64_t at = first + head * stride;
        for (int64_t other = head; other < heads; other += 4) { /* four sums at once: one waits for its last addition */
            const float *row = hand->weights + head * padded, *others = hand->weights + other * padded;
            const int64_t left = heads - other;
            double found[4] = {0};
            if (left == 1) multiply(row, others, padded, 1, found);
            else if (left == 2) multiply(row, others, padded, 2, found);
            else if (left == 3) multiply(row, others, padded, 3, found);
            else multiply(row, others, padded, 4, found);
            for (int64_t k = 0; k < 4 && k < left; k++) {
                const int64_t with = first + (other + k) * stride;
                double product = (double)rows->share[at] * rows->share[with] * found[k];
                for (int64_t x = 0; x < prefix; x++)
                    product += (double)rows->prefix_scores[at * prefix + x] * rows->prefix_scores[with * prefix + x];
                products[head * heads + other + k] += product;
            }
        }
    }
}

/* Some queries of an image, all heads of each before the next: what joins heads finds their rows in the cache. */
static void read_part(const Rows *rows, Hand *hand, int64_t unit) {
    const int64_t image = unit / rows->parts, part = unit % rows->parts, heads = rows->heads, padded = rows->padded;
    const int64_t sums_of_head = 2 * (padded + rows->prefix);
    float *sums = rows->sums ? rows->sums + unit * heads * sums_of_head : 0;
    double *products = rows->products ? rows->products_sums + unit * heads * heads : 0;
    if (sums) memset(sums, 0, sizeof(float) * (size_t)(heads * sums_of_head));
    if (products) memset(products, 0, sizeof(double) * (size_t)(heads * heads));
    for (int64_t head = 0; rows->norms && head < heads; head++) {
        const float *norms = rows->norms + (image * heads + head) * rows->tokens + rows->prefix;
        copy_padded(hand->norms + head * padded, norms, rows->patches, padded, 0);
    }
    const int64_t end = rows->queries * (part + 1) / rows->parts;
    for (int64_t row = rows->queries * part / rows->parts; row < end; row++) {
        const int64_t patch = rows->first + row - rows->prefix;
        hand->line = patch / rows->columns, hand->column = patch % rows->columns;
        if (rows->distances) copy_padded(hand->distances, rows->distances + row * rows->patches, rows->patches, padded, 0);
        for (int64_t head = 0; head < heads; head++) {
            const float inverse_total = (float)read_row(rows, hand, image, head, row);
            const int64_t at = (image * heads + head) * rows->queries + row;
            if (sums) add_to_columns(rows, hand->weights + head * padded, at, inverse_total, sums + head * sums_of_head);
        }
        if (rows->mean_map) add_to_map(rows, hand, image, row);
        if (products) add_to_products(rows, hand, image, row, products);
    }
}

/* The sums of an image's parts are added to the results, always in the same order. */
static void join_parts(const Rows *rows, int64_t image) {
    const int64_t heads = rows->heads, tokens = rows->tokens, padded = rows->padded, prefix = rows->prefix;
    for (int64_t unit = image * rows->parts; unit < (image + 1) * rows->parts; unit++) {
        for (int64_t head = 0; head < heads; head++) {
            const int64_t group = image * heads + head;
            for (int which = 0; which < 2; which++) {
                float *restrict found = which ? rows->weighted_received : rows->received;
                if (!found) continue;
                const float *restrict sums = rows->sums + (unit * heads + head) * 2 * (padded + prefix) + which * padded;
                const float *restrict before = sums + 2 * padded + which * (prefix - padded);
                const float *norms = which ? rows->norms + group * tokens : 0;
                for (int64_t k = 0; k < prefix; k++) found[group * tokens + k] += norms ? before[k] * norms[k] : before[k];
                for (int64_t j = prefix; j < tokens; j++)
                    found[group * tokens + j] += norms ? sums[j - prefix] * norms[j] : sums[j - prefix];
            }
            for (int64_t other = head; rows->products && other < heads; other++) {
                const float found = (float)rows->products_sums[(unit * heads + head) * heads + other];
                rows->products[group * heads + other] += found;
                if (other != head) rows->products[(image * heads + other) * heads + head] += found;
            }
        }
    }
}

void read_rows(const Rows *rows) {
    const int64_t units = rows->images * rows->parts, patches = rows->patches;
    const int threads = (int)rows->threads;
#pragma omp parallel for schedule(static) num_threads(threads) if (rows->images * rows->heads * rows->queries * patches > 32768)
    for (int thread = 0; thread < threads; thread++) {
        Hand hand = hand_of(rows, thread);
        for (int which = 0; rows->places && which < 2; which++)
            copy_padded(hand.places + which * rows->padded, rows->places + which * patches, patches, rows->padded, 0);
        for (int64_t unit = units * thread / threads; unit < units * (thread + 1) / threads; unit++)
            read_part(rows, &hand, unit);
    }
    for (int64_t image = 0; image < rows->images; image++) join_parts(rows, image);
}
