/* The fused CPU path, in C: everything that is read off a row of attention or summed over rows, while the row is in a
 * core's cache.
 *
 * cpu_library.py compiles this file when it is first needed and fused_cpu.py calls it; tile.py says the same in torch.
 * The definitions are in reference.py. Sums over patches are float32 within PIECE patches, and double over the pieces;
 * what is done once a row is double.
 *
 * Shapes: b images, H heads of them, g = b H, t queries, P patches, X tokens before them, N tokens, C width of the model.
 */

#include <math.h>
#include <stdint.h>
#include <string.h>

enum { PIECE = 512, SEARCH = 64, WIDTH = 128, MOST_HEADS = 256 };

/* e^x for -87 <= x <= 0, within one unit of the last place: a power of two times a polynomial on half of log 2. */
static inline float exp_of(float x) {
    const float n = rintf(x * 1.44269504f);
    const float r = (x - n * 0.693145752f) - n * 1.42860677e-6f;
    float p = 1.98756912e-4f;
    p = p * r + 1.39819994e-3f;
    p = p * r + 8.33345205e-3f;
    p = p * r + 4.16657962e-2f;
    p = p * r + 1.66666657e-1f;
    p = p * r + 0.5f;
    p = p * r * r + r + 1.0f;
    union { int32_t bits; float number; } power = {((int32_t)n + 127) * (1 << 23)};
    return p * power.number;
}

/* What a row is read into. A field that is not asked for is NULL. fused_cpu.py has the same list. */
typedef struct {
    int64_t images, heads, queries, patches, prefix, tokens; /* b, H, t, P, X, N */
    int64_t columns, first;                                  /* patches in a line of the grid; which token the first query is */
    int64_t threads, parts;                                  /* how many to use; of an image's queries, to share them out */
    int64_t of_heads;                                        /* how many the layer has, where H is some of them */
    int64_t class_token, registers;                   /* its index, -1 for none; how many there are, last before the patches */
    float *scores;          /* (g, t, P); becomes the softmax over the patches alone */
    float *prefix_scores;   /* (g, t, X); becomes their weights in the whole row */
    const float *places;    /* (2, P), line and column of each patch */
    const float *distances; /* (t, P), in patches */
    const float *norms;     /* (g, N), of the projected values */
    float *share;           /* (g, t), the weight on all patches */
    float *sums;            /* (b parts, H, 2, N), room */
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

/* The first of the largest scores; NaN is passed over. */
static void find_largest(const float *restrict scores, int64_t count, float *largest, int64_t *best) {
    int64_t piece = 0; /* a search that stops early is not vectorised: find the piece, then the place in it */
    *largest = -INFINITY;
    for (int64_t start = 0; start < count; start += SEARCH) {
        const int64_t end = start + SEARCH < count ? start + SEARCH : count;
        float here = -INFINITY;
#pragma omp simd reduction(max : here)
        for (int64_t j = start; j < end; j++) here = scores[j] > here ? scores[j] : here;
        if (here > *largest) *largest = here, piece = start;
    }
    *best = piece;
    while (*best + 1 < count && scores[*best] != *largest) ++*best;
}

/* The scores of a row become u_j, without the largest. */
static Sums exponentials(float *restrict scores, int64_t count, int64_t columns, const float *restrict places,
                         const float *restrict distances, const float *restrict norms) {
    Sums sums = {0};
    find_largest(scores, count, &sums.largest, &sums.best);
    const float largest = sums.largest;
    if (largest == -INFINITY) return sums;
    scores[sums.best] = -INFINITY;
    const float first_line = (float)(sums.best / columns), first_column = (float)(sums.best % columns);
    for (int64_t start = 0; start < count; start += PIECE) {
        const int64_t end = start + PIECE < count ? start + PIECE : count;
        float others = 0, fall = 0;
#pragma omp simd reduction(+ : others, fall)
        for (int64_t j = start; j < end; j++) {
            const float x = scores[j] - largest;
            const float near = x >= -87.0f ? x : -87.0f;
            float u = x >= -87.0f ? exp_of(near) : 0.0f;
            u = x == x ? u : x; /* NaN */
            scores[j] = u;
            others += u;
            fall -= u * near;
        }
        sums.others += others;
        sums.fall += fall;
        if (places) {
            float down = 0, down_squared = 0, across = 0, across_squared = 0;
#pragma omp simd reduction(+ : down, down_squared, across, across_squared)
            for (int64_t j = start; j < end; j++) {
                const float line = places[j] - first_line, column = places[count + j] - first_column;
                down += scores[j] * line;
                down_squared += scores[j] * line * line;
                across += scores[j] * column;
                across_squared += scores[j] * column * column;
            }
            sums.down += down;
            sums.down_squared += down_squared;
            sums.across += across;
            sums.across_squared += across_squared;
        }
        float distance = 0, weighted = 0;
        if (distances) {
#pragma omp simd reduction(+ : distance)
            for (int64_t j = start; j < end; j++) distance += scores[j] * distances[j];
        }
        if (norms) {
#pragma omp simd reduction(+ : weighted)
            for (int64_t j = start; j < end; j++) weighted += scores[j] * norms[j];
        }
        sums.distance += distance;
        sums.weighted += weighted;
    }
    if (!(largest < INFINITY)) sums.others = NAN;
    return sums;
}

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

/* The weights of the up to eight patches around one, among the patches. */
static double around(const float *weights, int64_t lines, int64_t columns, int64_t patch) {
    const int64_t line = patch / columns, column = patch % columns;
    double sum = 0;
    for (int64_t i = line - 1; i <= line + 1; i++)
        for (int64_t j = column - 1; j <= column + 1; j++)
            if (i >= 0 && i < lines && j >= 0 && j < columns && (i != line || j != column)) sum += weights[i * columns + j];
    return sum;
}

/* Returns 1 / weighted_sum, or 0 without norms. */
static double read_row(const Rows *rows, int64_t group, int64_t row) {
    const int64_t patches = rows->patches, prefix = rows->prefix, columns = rows->columns;
    const int64_t lines = patches / columns, at = group * rows->queries + row, token = rows->first + row;
    const int64_t out = group * rows->tokens + token, first_register = prefix - rows->registers;
    const float *norms = rows->norms ? rows->norms + group * rows->tokens : 0;
    const float *distances = rows->distances ? rows->distances + row * patches : 0;
    float *weights = rows->scores + at * patches, *before = rows->prefix_scores + at * prefix;

    Sums sums = exponentials(weights, patches, columns, rows->places, distances, norms ? norms + prefix : 0);
    const int sees_patches = sums.largest > -INFINITY;
    const double sum = 1 + sums.others, of_patches = sum_of(weights, sees_patches ? 0 : patches);
    /* Of nothing but -inf, or NaN among them: the weights are 0, or NaN. */
    const double inverse = sees_patches ? 1 / sum : of_patches == -INFINITY ? 0 : NAN;
    if (sees_patches) weights[sums.best] = 1;
    for (int64_t j = 0; j < patches; j++) weights[j] = sees_patches ? weights[j] * (float)inverse : (float)inverse;

    /* Patches and the tokens before them have a softmax each; the odds say how the row is divided between them. */
    const double log_others = log1p(sums.others);
    const double log_sum = sees_patches ? sums.largest + log_others : of_patches;
    const double log_sum_before = log_sum_of(before, prefix);
    const double log_odds = prefix ? log_sum - log_sum_before : isfinite(log_sum) ? INFINITY : NAN;
    const double odds = exp(-fabs(log_odds)), larger = 1 / (1 + odds), smaller = odds * larger;
    const double share = log_odds < 0 ? smaller : larger, rest = log_odds < 0 ? larger : smaller;
    const double best_weight = share * inverse;

    if (rows->entropy) {
        double found = isinf(log_odds) ? 0 : log1p(odds) + smaller * fabs(log_odds); /* of the two shares */
        if (share > 0 || isnan(share)) found += share * (log_others + sums.fall * inverse);
        if (prefix > 1 && log_odds != INFINITY) found += rest * small_entropy(before, prefix, log_sum_before);
        rows->entropy[out] = (float)found;
    }
    if (rows->places) {
        const double down = sums.down * inverse, across = sums.across * inverse;
        const double variance = (sums.down_squared + sums.across_squared) * inverse - down * down - across * across;
        const double none = sees_patches ? 0 : NAN;
        rows->centre[2 * out] = (float)(sums.best / columns + down + none);
        rows->centre[2 * out + 1] = (float)(sums.best % columns + across + none);
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
        rows->on_neighbours[out] = token < prefix ? NAN : (float)(share * around(weights, lines, columns, token - prefix));
    }
    double inverse_total = 0;
    if (norms) {
        const double total = weighted_before + weighted_of_patches;
        double of_registers = 0;
        for (int64_t k = first_register; k < prefix; k++) of_registers += before[k] * norms[k];
        rows->weighted_sum[out] = (float)total;
        inverse_total = 1 / total;
        rows->weighted_on_prefix[out] = (float)(weighted_before / total);
        rows->weighted_on_patches[out] = (float)(weighted_of_patches / total);
        rows->weighted_on_self[out] = (float)(own * norms[token] / total);
        if (rows->weighted_on_class_token)
            rows->weighted_on_class_token[out] = (float)(before[rows->class_token] * norms[rows->class_token] / total);
        if (rows->weighted_on_registers) rows->weighted_on_registers[out] = (float)(of_registers / total);
    }
    rows->share[at] = (float)share;
    return inverse_total;
}

/* A row's weights are added to the sums (2, N) over queries, the second time with the factor. */
static void add_to_columns(const Rows *rows, int64_t at, float factor, float *restrict sums) {
    const int64_t patches = rows->patches, prefix = rows->prefix;
    const float *restrict weights = rows->scores + at * patches, *restrict before = rows->prefix_scores + at * prefix;
    const float share = rows->share[at];
    float *restrict weighted = sums + rows->tokens;
    for (int64_t k = 0; k < prefix; k++) sums[k] += before[k], weighted[k] += factor * before[k];
#pragma omp simd
    for (int64_t j = 0; j < patches; j++) {
        const float p = share * weights[j];
        sums[prefix + j] += p;
        weighted[prefix + j] += factor * p;
    }
}

static void add_to_map(const Rows *rows, int64_t image, int64_t row) {
    const int64_t patches = rows->patches, prefix = rows->prefix;
    float *restrict map = rows->mean_map + (image * rows->tokens + rows->first + row) * rows->tokens;
    for (int64_t head = 0; head < rows->heads; head++) {
        const int64_t at = (image * rows->heads + head) * rows->queries + row;
        const float *restrict weights = rows->scores + at * patches, *restrict before = rows->prefix_scores + at * prefix;
        const float each = 1.0f / (float)rows->of_heads, share = rows->share[at] * each;
        for (int64_t k = 0; k < prefix; k++) map[k] += each * before[k];
#pragma omp simd
        for (int64_t j = 0; j < patches; j++) map[prefix + j] += share * weights[j];
    }
}

/* The product of each head's row with those of the heads from it on is added to the products (H, H). */
static void add_to_products(const Rows *rows, int64_t image, int64_t row, double *products) {
    const int64_t heads = rows->heads, patches = rows->patches, prefix = rows->prefix, stride = rows->queries;
    const int64_t first = image * heads * stride + row;
    for (int64_t head = 0; head < heads; head++) {
        const int64_t at = first + head * stride;
        for (int64_t other = head; other < heads; other += 4) { /* four sums at once: one waits for its last addition */
            const float *restrict weights = rows->scores + at * patches, *restrict with[4];
            int64_t where[4];
            for (int64_t k = 0; k < 4; k++) {
                where[k] = first + (other + k < heads ? other + k : other) * stride;
                with[k] = rows->scores + where[k] * patches;
            }
            double found[4] = {0};
            for (int64_t start = 0; start < patches; start += PIECE) {
                const int64_t end = start + PIECE < patches ? start + PIECE : patches;
                float a = 0, b = 0, c = 0, d = 0;
#pragma omp simd reduction(+ : a, b, c, d)
                for (int64_t j = start; j < end; j++) {
                    a += weights[j] * with[0][j];
                    b += weights[j] * with[1][j];
                    c += weights[j] * with[2][j];
                    d += weights[j] * with[3][j];
                }
                found[0] += a, found[1] += b, found[2] += c, found[3] += d;
            }
            for (int64_t k = 0; k < 4 && other + k < heads; k++) {
                double product = (double)rows->share[at] * rows->share[where[k]] * found[k];
                for (int64_t x = 0; x < prefix; x++)
                    product += (double)rows->prefix_scores[at * prefix + x] * rows->prefix_scores[where[k] * prefix + x];
                products[head * heads + other + k] += product;
            }
        }
    }
}

/* Some queries of an image, all heads of each before the next: what joins heads finds their rows in the cache. */
static void read_part(const Rows *rows, int64_t unit) {
    const int64_t image = unit / rows->parts, part = unit % rows->parts, heads = rows->heads;
    float *sums = rows->sums ? rows->sums + unit * heads * 2 * rows->tokens : 0;
    double *products = rows->products ? rows->products_sums + unit * heads * heads : 0;
    if (sums) memset(sums, 0, sizeof(float) * (size_t)(heads * 2 * rows->tokens));
    if (products) memset(products, 0, sizeof(double) * (size_t)(heads * heads));
    const int64_t end = rows->queries * (part + 1) / rows->parts;
    for (int64_t row = rows->queries * part / rows->parts; row < end; row++) {
        for (int64_t head = 0; head < heads; head++) {
            const int64_t group = image * heads + head;
            const double inverse_total = read_row(rows, group, row);
            if (sums) add_to_columns(rows, group * rows->queries + row, (float)inverse_total, sums + head * 2 * rows->tokens);
        }
        if (rows->mean_map) add_to_map(rows, image, row);
        if (products) add_to_products(rows, image, row, products);
    }
}

/* The sums of an image's parts are added to the results, always in the same order. */
static void join_parts(const Rows *rows, int64_t image) {
    const int64_t heads = rows->heads, tokens = rows->tokens;
    for (int64_t unit = image * rows->parts; unit < (image + 1) * rows->parts; unit++) {
        for (int64_t head = 0; head < heads; head++) {
            const int64_t group = image * heads + head;
            const float *sums = rows->sums + (unit * heads + head) * 2 * tokens;
            for (int64_t j = 0; rows->received && j < tokens; j++) rows->received[group * tokens + j] += sums[j];
            for (int64_t j = 0; rows->weighted_received && j < tokens; j++)
                rows->weighted_received[group * tokens + j] += sums[tokens + j] * rows->norms[group * tokens + j];
            for (int64_t other = head; rows->products && other < heads; other++) {
                const float found = (float)rows->products_sums[(unit * heads + head) * heads + other];
                rows->products[group * heads + other] += found;
                if (other != head) rows->products[(image * heads + other) * heads + head] += found;
            }
        }
    }
}

void read_rows(const Rows *rows) {
    const int64_t units = rows->images * rows->parts;
    const int threads = (int)rows->threads;
    (void)threads; /* without OpenMP */
#pragma omp parallel for schedule(static) num_threads(threads) if (rows->images * rows->heads * rows->queries * rows->patches > 32768)
    for (int64_t unit = 0; unit < units; unit++) read_part(rows, unit);
    for (int64_t image = 0; image < rows->images; image++) join_parts(rows, image);
}

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
