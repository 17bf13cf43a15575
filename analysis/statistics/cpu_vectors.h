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
