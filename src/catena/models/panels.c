/* Products of rows with weights that lie in panels, and whole steps of decoders that are built of them.
 *
 *     y[m][n] = sum over k of w[n][k] * x[m][k] + bias[n]         x, y float32 outside; sums in float32 or whole numbers
 *
 * A panel is 32 outputs of a weight, in the order in which they are read: for each few inputs, all 32 outputs. So a
 * weight is one stream from end to end, and a vector of it meets one broadcast number of each row.
 *
 *     float32    [n / 32][k][32]                     rows of x as they are
 *     bfloat16   [n / 32][k / 2][32][2]              rows of x rounded to bfloat16
 *     int8       [n / 32][k / 4][32][4], 128 added   rows of x as whole numbers of 16 bits (two planes of 8), or of 8
 *     int4       [n / 32][k / 8][32][4], 8 added     the same; input k + 4 stands in the upper half of k's byte
 *
 * Each output is added up in the same order however many rows there are. Vectors are GCC's; where a processor has
 * products of bfloat16 or int8 they are used. `catena.models.native` compiles this for the processor it runs on.
 */
#define _GNU_SOURCE
#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define INLINE static inline __attribute__((always_inline))
#define WIDE 32  /* outputs of a panel */
#define LANES 16
#define MOST 12  /* rows of the largest tile */
#define AHEAD 4096
#define FEW 4
#define BAND 48    /* tiles that go through a weight together */
#define PART 1024  /* half bytes of one output, in a part of a panel: 16 KiB in all */

typedef float vf __attribute__((vector_size(64), aligned(4), may_alias));
typedef int32_t vi __attribute__((vector_size(64), aligned(4), may_alias));
typedef int8_t vb __attribute__((vector_size(16), aligned(1), may_alias));
typedef uint16_t bf16;

enum { BF16, INT8, INT4, FP32 };

#include "team.c"

/* ---- numbers ---------------------------------------------------------------------------------------------------- */

INLINE float as_float(uint32_t bits) { float f; memcpy(&f, &bits, 4); return f; }
INLINE uint32_t as_bits(float f) { uint32_t bits; memcpy(&bits, &f, 4); return bits; }

INLINE uint32_t rounded(float value) { /* to bfloat16, the nearest even */
    uint32_t bits = as_bits(value);
    if (value != value) return 0x7fc0;
    return (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}

/* 32 numbers to bfloat16, two in each lane; none of them is large or no number, or it stays so. */
INLINE vi paired(const float *from) {
#ifdef __AVX512BF16__
    return (vi)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(from + LANES), _mm512_loadu_ps(from));
#else
    vi pairs;
    for (int at = 0; at < LANES; at++) pairs[at] = (int32_t)(rounded(from[2 * at]) | rounded(from[2 * at + 1]) << 16);
    return pairs;
#endif
}

/* A product of float32 in each lane, or two of bfloat16: `per` numbers are 32 bits. */
INLINE vf dot(const int per, vf sum, vi w, int32_t x) {
#ifdef __AVX512F__ /* rounded once wherever it stands, whatever the compiler thinks of it */
    if (per == 1) return (vf)_mm512_fmadd_ps((__m512)w, _mm512_set1_ps(as_float((uint32_t)x)), (__m512)sum);
#else
    if (per == 1) return sum + (vf)w * as_float((uint32_t)x);
#endif
#ifdef __AVX512BF16__
    return (vf)_mm512_dpbf16_ps((__m512)sum, (__m512bh)w, (__m512bh)_mm512_set1_epi32(x));
#else
    return sum + (vf)(w << 16) * as_float((uint32_t)x << 16) + (vf)(w & (int32_t)0xffff0000) * as_float(x & 0xffff0000u);
#endif
}

INLINE vi dot4(vi sum, vi w, int32_t x) { /* four products of unsigned and signed bytes in each lane */
#ifdef __AVX512VNNI__
    return (vi)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)w, _mm512_set1_epi32(x));
#else
    for (int at = 0; at < 32; at += 8) sum += ((w >> at) & 255) * (int32_t)(int8_t)(x >> at);
    return sum;
#endif
}

#ifdef __AVX512F__
INLINE float added(vf v) { return _mm512_reduce_add_ps((__m512)v); }
INLINE float largest(vf v) { return _mm512_reduce_max_ps((__m512)v); }
#else
INLINE float added(vf v) { float sum = 0; for (int at = 0; at < LANES; at++) sum += v[at]; return sum; }
INLINE float largest(vf v) { float most = v[0]; for (int at = 1; at < LANES; at++) most = v[at] > most ? v[at] : most; return most; }
#endif
INLINE int32_t total(vi v) { int32_t sum = 0; for (int at = 0; at < LANES; at++) sum += v[at]; return sum; }
INLINE vf either(vi mask, vf yes, vf no) { return (vf)(((vi)yes & mask) | ((vi)no & ~mask)); }

INLINE vf exponential(vf x) { /* to about two units in the last place; 0 below -87, no further up than 88 */
    vi far = x < -87.0f;
    x = either(far, (vf){0}, either(x > 88.0f, (vf){0} + 88.0f, x));
    vf whole = x * 1.44269504f + 12582912.0f - 12582912.0f; /* to the nearest whole number */
    vf rest = x - whole * 0.693359375f + whole * 2.12194440e-4f;
    vf y = 1.9875691500e-4f + (vf){0};
    y = y * rest + 1.3981999507e-3f;
    y = y * rest + 8.3334519073e-3f;
    y = y * rest + 4.1665795894e-2f;
    y = y * rest + 1.6666665459e-1f;
    y = y * rest + 5.0000001201e-1f;
    y = y * rest * rest + rest + 1.0f;
    y = (vf)((vi)y + (__builtin_convertvector(whole, vi) << 23));
    return either(far, (vf){0}, y);
}

/* ---- rows, as a kind of weight wants them ------------------------------------------------------------------------ */

typedef struct {
    const void *weight;
    const void *scale; /* int8: float32 [n padded]; int4: float16 [n / 32][groups][32] */
    const float *bias;
    long n, k, group;
    int kind, planes;
} Linear;

typedef struct {
    int kind, planes, tile; /* rows of a tile but the last */
    long rows, k, group;
    char *data;    /* float32 [tile][k][rows], bfloat16 [tile][k / 2][rows][2]; whole numbers [tile][k / 4][planes][rows][4] */
    float *scales; /* [tile][k / group][rows] */
    int32_t *sums; /* [tile][k / group][planes][rows] */
} Rows;

INLINE int of_floats(int kind) { return kind == BF16 || kind == FP32; }

/* Bytes of a number of a row, as a weight of that kind wants it. */
INLINE long row_bytes(int kind, int planes) { return kind == FP32 ? 4 : kind == BF16 ? 2 : planes; }

INLINE int tile_of(int kind, int planes, long rows) {
    if (!of_floats(kind) && planes == 2) return 6;
    return rows > MOST && rows <= 16 ? 8 : MOST;
}

INLINE int size_of(long rows) { return rows <= 2 ? (int)rows : rows <= 4 ? 4 : rows <= 6 ? 6 : rows <= 8 ? 8 : 12; }

INLINE int height(const Rows *x, long tile) {
    long left = x->rows - tile * x->tile;
    return left >= x->tile ? x->tile : size_of(left);
}

static Rows rows_for(const Linear *one, long rows, char **memory) {
    Rows x = {one->kind, one->planes, tile_of(one->kind, one->planes, rows), rows, one->k, one->group, 0, 0, 0};
    long padded = (rows + MOST) / x.tile * x.tile + MOST, groups = one->k / one->group;
    long bytes = row_bytes(x.kind, x.planes);
    x.data = *memory;
    x.scales = (float *)(x.data + (padded * x.k * bytes + 63) / 64 * 64);
    x.sums = (int32_t *)(x.scales + (padded * groups + 15) / 16 * 16);
    *memory = (char *)(x.sums + (padded * groups * 2 + 15) / 16 * 16);
    return x;
}

static long rows_bytes(long rows, long k) { return (rows + 2 * MOST) * (k * 4 + k / 8 * 12) + 512; }

INLINE void put_bf16(const float *row, long size, int32_t *to, int high) {
    for (long k = 0; k < size; k += 2 * LANES) {
        vi pairs = paired(row + k);
        for (int at = 0; at < LANES; at++) to[(k / 2 + at) * high] = pairs[at];
    }
}

INLINE void put_fp32(const float *row, long size, int32_t *to, int high) {
    for (long k = 0; k < size; k++) memcpy(to + k * high, row + k, 4);
}

/* Largest size, and not a number where one of them is none. */
INLINE float reach(const float *from, long size) {
    vf most = {0}, spoilt = {0};
    for (long k = 0; k < size; k += LANES) {
        vf v = *(const vf *)(from + k), length = (vf)((vi)v & 0x7fffffff);
        most = either(length > most, length, most);
        spoilt += v * 0.0f;
    }
    return largest(most) + added(spoilt);
}

INLINE void put_whole(const float *row, const Rows *x, int32_t *to, float *scales, int32_t *sums, int high) {
    int whole = x->kind == INT8 && x->planes == 1; /* W8A8: one scale for the row */
    float steps = x->planes == 2 ? 32512.0f : 127.5f, most = whole ? reach(row, x->k) : 0;
    for (long g = 0; g < x->k / x->group; g++, row += x->group, scales += high, sums += x->planes * high) {
        if (!whole) most = reach(row, x->group);
        float inverse = most > 0 && most < INFINITY ? steps / most : 0.0f;
        vi upper = {0}, lower = {0};
        for (long k = 0; k < x->group; k += LANES, to += 4 * x->planes * high) {
            vf scaled = {0};
            if (inverse > 0) scaled = *(const vf *)(row + k) * inverse;
            vi value = (vi)(scaled + 12582912.0f) - 0x4b400000; /* to the nearest whole number */
            value = (vi)either(value > (x->planes == 2 ? 32512 : 127), (vf)((vi){0} + (x->planes == 2 ? 32512 : 127)), (vf)value);
            vi high_part = value, low_part = {0};
            if (x->planes == 2) high_part = (value + 128) >> 8, low_part = value - high_part * 256;
            upper += high_part;
            lower += low_part;
            for (int plane = 0; plane < x->planes; plane++) {
                vb bytes = __builtin_convertvector(plane ? low_part : high_part, vb);
                int32_t fours[4];
                memcpy(fours, &bytes, 16);
                for (int at = 0; at < 4; at++) to[(at * x->planes + plane) * high] = fours[at];
            }
        }
        *scales = most == 0 ? 1.0f : most / steps;
        sums[0] = total(upper);
        if (x->planes == 2) sums[high] = total(lower);
    }
}

/* Put row `m` of float32 into its tile. Rows that only fill a tile up hold anything: nothing of them is kept. */
static void put(const float *row, const Rows *x, long m) {
    long tile = m / x->tile, groups = x->k / x->group;
    int high = height(x, tile), at = (int)(m % x->tile);
    int32_t *data = (int32_t *)(x->data + tile * x->tile * x->k * row_bytes(x->kind, x->planes)) + at;
    if (x->kind == FP32) put_fp32(row, x->k, data, high);
    else if (x->kind == BF16) put_bf16(row, x->k, data, high);
    else put_whole(row, x, data, x->scales + tile * x->tile * groups + at,
                   x->sums + tile * x->tile * groups * x->planes + at, high);
}

/* ---- products ---------------------------------------------------------------------------------------------------- */

typedef struct { const char *w; const void *scale; const char *x; const float *scales; const int32_t *sums;
                 long ahead, k, group; } Piece;

/* `MR` rows with a panel, or a part of one, are added to out[row][32]; what lies `ahead` of the weight is fetched. */
INLINE void tile_of_floats(const int per, const int MR, const Piece *p, vf out[][2]) {
    vf sums[MOST][2];
#pragma GCC unroll 12
    for (int m = 0; m < MR; m++) sums[m][0] = out[m][0], sums[m][1] = out[m][1];
    const int32_t *w = (const int32_t *)p->w, *x = (const int32_t *)p->x;
    for (long i = 0; i < p->k / per; i++, w += WIDE, x += MR) {
        vi first = *(const vi *)w, second = *(const vi *)(w + LANES);
        __builtin_prefetch((const char *)w + p->ahead, 0, 2);
#pragma GCC unroll 12
        for (int m = 0; m < MR; m++) {
            int32_t value = x[m];
            sums[m][0] = dot(per, sums[m][0], first, value);
            sums[m][1] = dot(per, sums[m][1], second, value);
        }
    }
#pragma GCC unroll 12
    for (int m = 0; m < MR; m++) out[m][0] = sums[m][0], out[m][1] = sums[m][1];
}

INLINE vf half_to_float(const uint16_t *from) {
#ifdef __AVX512F__
    return (vf)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)from));
#else
    vf found;
    for (int at = 0; at < LANES; at++) { _Float16 h; memcpy(&h, from + at, 2); found[at] = (float)h; }
    return found;
#endif
}

INLINE void tile_whole(const int four, const int planes, const int MR, const Piece *p, vf out[][2]) {
    const int32_t *w = (const int32_t *)p->w, *x = (const int32_t *)p->x;
    const int offset = four ? 8 : 128;
    for (long g = 0; g < p->k / p->group; g++) {
        vi sums[2][MOST][2];
        for (int q = 0; q < planes; q++)
            for (int m = 0; m < MR; m++)
                sums[q][m][0] = sums[q][m][1] = (vi){0} - p->sums[(g * planes + q) * MR + m] * offset;
        for (long i = 0; i < p->group / (four ? 8 : 4); i++, w += WIDE) {
            vi first = *(const vi *)w, second = *(const vi *)(w + LANES);
            __builtin_prefetch((const char *)w + p->ahead, 0, 2);
    #pragma GCC unroll 2
            for (int upper = 0; upper <= four; upper++) {
                vi a = upper ? first >> 4 : first, b = upper ? second >> 4 : second;
                if (four) a &= 0x0f0f0f0f, b &= 0x0f0f0f0f;
#pragma GCC unroll 2
                for (int q = 0; q < planes; q++)
#pragma GCC unroll 12
                    for (int m = 0; m < MR; m++) {
                        int32_t value = x[q * MR + m];
                        sums[q][m][0] = dot4(sums[q][m][0], a, value);
                        sums[q][m][1] = dot4(sums[q][m][1], b, value);
                    }
                x += planes * MR;
            }
        }
        vf scale[2];
        for (int half = 0; half < 2; half++)
            scale[half] = four ? half_to_float((const uint16_t *)p->scale + g * WIDE + half * LANES)
                               : *(const vf *)((const float *)p->scale + half * LANES);
        for (int m = 0; m < MR; m++)
            for (int half = 0; half < 2; half++) {
                vf value = __builtin_convertvector(sums[0][m][half], vf);
                if (planes == 2) value = value * 256.0f + __builtin_convertvector(sums[1][m][half], vf);
                out[m][half] += value * (scale[half] * p->scales[g * MR + m]);
            }
    }
}

typedef void Kernel(const Piece *, vf[][2]);
#define SIZE(name, size, call) static void name##_##size(const Piece *p, vf out[][2]) { call; }
#define SIX(name, call) /* for up to 1, 2, 4, 6, 8, 12 rows */ \
    call(name, 1) call(name, 2) call(name, 4) call(name, 6) call(name, 8) call(name, 12) \
    static Kernel *const name[] = {0, name##_1, name##_2, 0, name##_4, 0, name##_6, 0, name##_8, 0, 0, 0, name##_12};
#define FOUR(name, call) call(name, 1) call(name, 2) call(name, 4) call(name, 6) \
    static Kernel *const name[] = {0, name##_1, name##_2, 0, name##_4, 0, name##_6};
#define OF_FP32(name, size) SIZE(name, size, tile_of_floats(1, size, p, out))
#define OF_BF16(name, size) SIZE(name, size, tile_of_floats(2, size, p, out))
#define OF_8_1(name, size) SIZE(name, size, tile_whole(0, 1, size, p, out))
#define OF_8_2(name, size) SIZE(name, size, tile_whole(0, 2, size, p, out))
#define OF_4_1(name, size) SIZE(name, size, tile_whole(1, 1, size, p, out))
#define OF_4_2(name, size) SIZE(name, size, tile_whole(1, 2, size, p, out))
SIX(with_fp32, OF_FP32)
SIX(with_bf16, OF_BF16)
SIX(with_8_1, OF_8_1)
FOUR(with_8_2, OF_8_2)
SIX(with_4_1, OF_4_1)
FOUR(with_4_2, OF_4_2)

/* The outputs of a panel, of which `width` exist, with the bias and what stood there if that is wanted. */
INLINE void put_out(const float *found, const float *bias, float *row, long width, int add, int far) {
    if (width < WIDE) {
        for (long at = 0; at < width; at++) row[at] = found[at] + (bias ? bias[at] : 0) + (add ? row[at] : 0);
        return;
    }
    for (int at = 0; at < WIDE; at += LANES) {
        vf value = *(const vf *)(found + at);
        if (bias) value += *(const vf *)(bias + at);
        if (add) value += *(const vf *)(row + at);
#ifdef __AVX512F__
        if (far && (uintptr_t)(row + at) % 64 == 0) { _mm512_stream_ps(row + at, (__m512)value); continue; }
#endif
        *(vf *)(row + at) = value;
    }
}

/* How many inputs of a weight make a part of a panel that the nearest cache holds while tiles go through it. Many tiles
 * of bfloat16 are better off with whole panels: their sums need not be put away in between. */
static long part_size(const Linear *one, long halves, long tiles) {
    long size = one->k, unit = of_floats(one->kind) ? 32 : one->group;
    if (tiles == 1 || (tiles > FEW && of_floats(one->kind))) return size;
    while (size * halves > PART && size % 2 == 0 && size / 2 % unit == 0) size /= 2;
    return size;
}

/* y[rows][n] = x times a weight, or that added to y. A weight is read once for up to BAND tiles: all of them meet a part
 * of a panel while it is in the nearest cache, and the first two fetch the next part. */
static void product(const Linear *one, const Rows *x, float *y, long stride, int add, Team team) {
    long panels = (one->n + WIDE - 1) / WIDE, groups = one->k / one->group, tiles = (x->rows + x->tile - 1) / x->tile;
    long halves = one->kind == FP32 ? 8 : one->kind == BF16 ? 4 : one->kind == INT8 ? 2 : 1; /* half bytes of a number */
    long each = row_bytes(one->kind, x->planes), size = part_size(one, halves, tiles);
    int far = tiles > FEW && !add; /* so much that whoever reads it will not find it in a cache */
    long bytes = WIDE * size * halves / 2, together = size < one->k ? BAND : 1;
    vf out[BAND][MOST][2];
    Kernel *const *kernels = one->kind == FP32 ? with_fp32 : one->kind == BF16 ? with_bf16
        : one->kind == INT8 ? (one->planes == 1 ? with_8_1 : with_8_2) : (one->planes == 1 ? with_4_1 : with_4_2);
    for (long panel = part(panels, team, team.number); panel < part(panels, team, team.number + 1); panel++) {
        const char *w = (const char *)one->weight + panel * WIDE * one->k * halves / 2;
        const char *scale = one->kind == INT8 ? (const char *)one->scale + panel * WIDE * 4
            : one->kind == INT4 ? (const char *)one->scale + panel * WIDE * groups * 2 : 0;
        long width = one->n - panel * WIDE < WIDE ? one->n - panel * WIDE : WIDE;
        for (long band = 0; band < tiles; band += together) {
            long count = tiles - band < together ? tiles - band : together;
            for (long at = 0; at < count; at++) memset(out[at], 0, sizeof(vf[2]) * (size_t)height(x, band + at));
            for (long from = 0; from < one->k; from += size)
                for (long at = 0; at < count; at++) {
                    long first = (band + at) * x->tile, g = from / one->group;
                    int high = height(x, band + at);
                    kernels[high](&(Piece){w + WIDE * from * halves / 2, scale + (one->kind == INT4 ? g * WIDE * 2 : 0),
                                           x->data + (first * one->k + from * high) * each, x->scales + first * groups + g * high,
                                           x->sums + (first * groups + g * high) * x->planes,
                                           tiles == 1 ? AHEAD : band + at < 2 ? bytes + 64 * (band + at) : 0, size, one->group}, out[at]);
                }
            for (long m = band * x->tile; m < x->rows && m < (band + count) * x->tile; m++)
                put_out((const float *)out[m / x->tile - band][m % x->tile], one->bias ? one->bias + panel * WIDE : 0,
                        y + m * stride + panel * WIDE, width, add, far);
        }
    }
    if (far) _mm_sfence();
}

/* y[rows][n] = x[rows][k] times a weight. */
void native_linear(const Linear *one, const float *x, float *y, long rows, int threads) {
    char *memory = aligned_alloc(64, (size_t)(rows_bytes(rows, one->k) + 63) / 64 * 64), *rest = memory;
    Rows packed = rows_for(one, rows, &rest);
    Gate gate = {0, 0, 0};
#pragma omp parallel num_threads(threads)
    {
        Team team = {omp_get_thread_num(), omp_get_num_threads(), &gate};
        for (long m = part(rows, team, team.number); m < part(rows, team, team.number + 1); m++)
            put(x + m * one->k, &packed, m);
        meet(team);
        product(one, &packed, y, one->n, 0, team);
    }
    free(memory);
}

/* Ask for large pages: a weight is read from end to end, and small pages take a walk every 4 KiB. */
void native_large_pages(void *from, long bytes) {
    uintptr_t start = ((uintptr_t)from + 4095) & ~(uintptr_t)4095, end = ((uintptr_t)from + bytes) & ~(uintptr_t)4095;
    if (end > start) madvise((void *)start, end - start, MADV_HUGEPAGE);
}
