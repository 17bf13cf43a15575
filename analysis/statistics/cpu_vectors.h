/* Vectors of numbers, as the processor has them. */

#include <stdint.h>
#include <string.h>

enum { PIECE = 512 }; /* so many numbers are summed in float32; pieces in double */

/* As many numbers as one instruction takes; fused_cpu.py pads rows to a multiple of it. The vectors that a compiler makes by
 * itself end with single numbers: those that are left over, and the lanes of a sum one by one. */
#if defined __AVX512F__
enum { LANES = 16 };
#elif defined __AVX2__
enum { LANES = 8 };
#else
enum { LANES = 4 };
#endif
typedef float Lanes __attribute__((vector_size(4 * LANES)));
typedef float Four __attribute__((vector_size(16)));
typedef int32_t FourWhole __attribute__((vector_size(16)));
typedef int32_t Whole __attribute__((vector_size(4 * LANES))); /* -1 where a comparison is true, else 0 */

static inline Lanes load(const float *from) {
    Lanes numbers;
    memcpy(&numbers, from, sizeof numbers);
    return numbers;
}

static inline void store(float *to, Lanes numbers) { memcpy(to, &numbers, sizeof numbers); }

static inline Lanes choose(Whole condition, Lanes yes, Lanes no) {
    return (Lanes)((condition & (Whole)yes) | (~condition & (Whole)no));
}

static inline float sum_lanes(Lanes numbers) {
    union { Lanes whole; Four part[LANES / 4]; } all = {numbers};
    Four sum = all.part[0];
    for (int k = 1; k < LANES / 4; k++) sum += all.part[k];
    return (sum[0] + sum[2]) + (sum[1] + sum[3]);
}

static inline float largest_lane(Lanes numbers) {
    union { Lanes whole; Four part[LANES / 4]; } all = {numbers};
    Four most = all.part[0];
    for (int k = 1; k < LANES / 4; k++) {
        const FourWhole larger = all.part[k] > most;
        most = (Four)((larger & (FourWhole)all.part[k]) | (~larger & (FourWhole)most));
    }
    const float one = most[0] > most[2] ? most[0] : most[2], other = most[1] > most[3] ? most[1] : most[3];
    return one > other ? one : other;
}

static inline int32_t least_lane(Whole numbers) {
    union { Whole whole; FourWhole part[LANES / 4]; } all = {numbers};
    FourWhole least = all.part[0];
    for (int k = 1; k < LANES / 4; k++) {
        const FourWhole less = all.part[k] < least;
        least = (less & all.part[k]) | (~less & least);
    }
    const int32_t one = least[0] < least[2] ? least[0] : least[2], other = least[1] < least[3] ? least[1] : least[3];
    return one < other ? one : other;
}

/* 0, 1, 2, ... */
static inline Whole number_of_lane(void) {
    Whole numbers;
    for (int k = 0; k < LANES; k++) numbers[k] = k;
    return numbers;
}

/* e^x for -87 <= x <= 0, within one unit of the last place: a power of two times a polynomial on half of log 2. */
static inline Lanes exp_of(Lanes x) {
    const Lanes rounded = x * 1.44269504f + 12582912.0f; /* 2^23 + 2^22, which has no places left: its last bits are n */
    const Lanes n = rounded - 12582912.0f;
    const Lanes r = (x - n * 0.693145752f) - n * 1.42860677e-6f;
    Lanes p = r * 1.98756912e-4f + 1.39819994e-3f;
    p = p * r + 8.33345205e-3f;
    p = p * r + 4.16657962e-2f;
    p = p * r + 1.66666657e-1f;
    p = p * r + 0.5f;
    p = p * r * r + r + 1.0f;
    return p * (Lanes)(((Whole)rounded - 0x4B400000 + 127) << 23);
}

/* x, or the least number of which exp_of is defined. */
static inline Lanes at_least(Lanes x) {
    const Lanes least = (Lanes){0} - 87.0f;
    return choose(x >= least, x, least);
}

/* e^x for x <= 0: 0 below the least, and NaN stays NaN. */
static inline Lanes exp_or_zero(Lanes x) {
    return (Lanes)(((Whole)exp_of(at_least(x)) & (x >= (Lanes){0} - 87.0f)) | (x != x));
}

/* Numbers and what makes them whole Lanes. */
static inline void copy_padded(float *to, const float *from, int64_t count, int64_t padded, float padding) {
    memcpy(to, from, sizeof(float) * (size_t)count);
    for (int64_t j = count; j < padded; j++) to[j] = padding;
}
