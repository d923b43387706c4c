/* Products of a few rows with a weight of int8 that lies row by row in memory.
 *
 *     y[m][n] = scale[n] * sum over k of w[n][k] * x[m][k]        x, y bfloat16; sums in float32
 *
 * A few rows wait for memory, and memory is fastest read in order: each row of the weight is read once, from end to
 * end, unpacked to bfloat16 (in which whole numbers up to 256 are exact), and multiplied with every x.
 * `catena.models.few_rows` compiles this for the processor that it runs on.
 */
#ifndef __AVX512BF16__
#error "no bfloat16 products"
#endif
#include <immintrin.h>
#include <stdint.h>
#include <stdlib.h>

#define TILE 8
#define LANES 32

static inline __m512bh at(const uint16_t *p) { return (__m512bh)_mm512_loadu_si512(p); }

static inline uint16_t rounded(float value) {
    union { float f; uint32_t u; } bits = {value};
    if (value != value) return 0x7fc0;
    return (uint16_t)((bits.u + 0x7fff + ((bits.u >> 16) & 1)) >> 16);
}

/* One row of a weight, as bfloat16, times one to TILE rows of x; the scale is that of the whole row. */
static inline void one_row(const uint16_t *w, const uint16_t *x, uint16_t *y, float scale, long rows, long k, long n) {
    for (long first = 0; first < rows; first += TILE) {
        long count = rows - first < TILE ? rows - first : TILE;
        const uint16_t *from = x + first * k;
        if (count == 1) {
            __m512 a = _mm512_setzero_ps(), b = a, c = a, d = a;
            long i = 0;
            for (; i + 4 * LANES <= k; i += 4 * LANES) {
                a = _mm512_dpbf16_ps(a, at(w + i), at(from + i));
                b = _mm512_dpbf16_ps(b, at(w + i + LANES), at(from + i + LANES));
                c = _mm512_dpbf16_ps(c, at(w + i + 2 * LANES), at(from + i + 2 * LANES));
                d = _mm512_dpbf16_ps(d, at(w + i + 3 * LANES), at(from + i + 3 * LANES));
            }
            for (; i < k; i += LANES) a = _mm512_dpbf16_ps(a, at(w + i), at(from + i));
            a = _mm512_add_ps(_mm512_add_ps(a, b), _mm512_add_ps(c, d));
            y[first * n] = rounded(scale * _mm512_reduce_add_ps(a));
            continue;
        }
        __m512 sums[TILE];
        for (int m = 0; m < TILE; m++) sums[m] = _mm512_setzero_ps();
        if (count == TILE) {
            for (long i = 0; i < k; i += LANES) {
                __m512bh value = at(w + i);
#pragma GCC unroll 8
                for (int m = 0; m < TILE; m++) sums[m] = _mm512_dpbf16_ps(sums[m], value, at(from + m * k + i));
            }
        } else {
            for (long m = 0; m < count; m++)
                for (long i = 0; i < k; i += LANES) sums[m] = _mm512_dpbf16_ps(sums[m], at(w + i), at(from + m * k + i));
        }
        for (long m = 0; m < count; m++) y[(first + m) * n] = rounded(scale * _mm512_reduce_add_ps(sums[m]));
    }
}

static inline void int8_to_bf16(const int8_t *from, uint16_t *to, long count) {
    for (long i = 0; i < count; i += LANES) {
        __m512 low = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(from + i))));
        __m512 high = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(from + i + 16))));
        _mm512_storeu_si512(to + i, (__m512i)_mm512_cvtne2ps_pbh(high, low));
    }
}

void few_rows_int8(const int8_t *w, const float *scale, const uint16_t *x, uint16_t *y, long rows, long n, long k,
                   int threads) {
#pragma omp parallel num_threads(threads)
    {
        uint16_t *row = aligned_alloc(64, (size_t)(2 * k + 127) / 64 * 64);
#pragma omp for schedule(static)
        for (long at_row = 0; at_row < n; at_row++) {
            int8_to_bf16(w + at_row * k, row, k);
            one_row(row, x, y + at_row, scale[at_row], rows, k, n);
        }
        free(row);
    }
}
