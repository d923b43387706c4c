/* Attention of a step's rows over a paged cache of float32 or bfloat16, 64 keys at a time, with a running softmax.
 * `per` numbers of the cache are 32 bits, which queries, keys and weights are counted in below.
 *
 * Many queries of one head (a prompt) share a layout of the keys and values as panels, and are multiplied in tiles. For
 * a few (one new token) laying out would cost more than it saves: they meet keys and values in registers. Both add up
 * in the same order, so a token's numbers do not depend on which way it went. `decoder.c` has the types.
 */

typedef uint16_t vh __attribute__((vector_size(32), aligned(2), may_alias));

#define KEYS 64          /* that are looked at together */
#define PARTS (KEYS / LANES)
#define TASK (16 * MOST) /* queries that share a layout of keys */
#if defined(__AVX512F__) && defined(__AVX512BW__)
#define IN_REGISTERS
#endif

/* Queries of a head that meet keys and values in registers. */
INLINE int at_once(const int per) {
#ifndef IN_REGISTERS
    return 0;
#elif !defined(__AVX512BF16__)
    return per == 1 ? 8 : 0;
#else
    return 8;
#endif
}

/* Where 64 keys and values stand, in bytes as all that leads into the pools; those that somebody sees come first. */
typedef struct { const char *keys[KEYS], *values[KEYS]; long base; int seen; } Page;

#ifdef __AVX512F__
/* Number i of vector j becomes number j of vector i. */
INLINE void transpose(__m512i a[16]) {
    __m512i b[16];
    for (int at = 0; at < 16; at += 2) {
        b[at] = _mm512_unpacklo_epi32(a[at], a[at + 1]);
        b[at + 1] = _mm512_unpackhi_epi32(a[at], a[at + 1]);
    }
    for (int at = 0; at < 16; at += 4) {
        a[at] = _mm512_unpacklo_epi64(b[at], b[at + 2]);
        a[at + 1] = _mm512_unpackhi_epi64(b[at], b[at + 2]);
        a[at + 2] = _mm512_unpacklo_epi64(b[at + 1], b[at + 3]);
        a[at + 3] = _mm512_unpackhi_epi64(b[at + 1], b[at + 3]);
    }
    for (int at = 0; at < 4; at++) { /* lane l of a[4 * j + at]: column 4 * l + at of rows 4 * j .. */
        __m512i p = _mm512_shuffle_i32x4(a[at], a[at + 4], 0x88), q = _mm512_shuffle_i32x4(a[at + 8], a[at + 12], 0x88);
        __m512i r = _mm512_shuffle_i32x4(a[at], a[at + 4], 0xdd), s = _mm512_shuffle_i32x4(a[at + 8], a[at + 12], 0xdd);
        b[at] = _mm512_shuffle_i32x4(p, q, 0x88);
        b[at + 4] = _mm512_shuffle_i32x4(r, s, 0x88);
        b[at + 8] = _mm512_shuffle_i32x4(p, q, 0xdd);
        b[at + 12] = _mm512_shuffle_i32x4(r, s, 0xdd);
    }
    for (int at = 0; at < 16; at++) a[at] = b[at];
}
#endif

/* 32 rows of `words` as a panel [words][32]. */
static void across(const char *const *rows, long offset, int32_t *to, long words) {
#ifdef __AVX512F__
    for (int half = 0; half < 2; half++)
        for (long d = 0; d < words; d += LANES) {
            __m512i a[16];
            for (int at = 0; at < 16; at++) a[at] = _mm512_loadu_si512(rows[half * 16 + at] + offset + 4 * d);
            transpose(a);
            for (int at = 0; at < 16; at++) _mm512_storeu_si512(to + (d + at) * WIDE + half * 16, a[at]);
        }
#else
    for (int row = 0; row < WIDE; row++)
        for (long d = 0; d < words; d++) memcpy(to + d * WIDE + row, rows[row] + offset + 4 * d, 4);
#endif
}

/* KEYS rows as panels [dim / 32][KEYS / per][32], two rows' numbers of bfloat16 side by side. */
INLINE void beside(const int per, const char *const *rows, long offset, int32_t *to, long dim) {
    for (long panel = 0; panel < dim / WIDE; panel++, offset += WIDE * 4 / per)
        for (int key = 0; key < KEYS; key += per, to += WIDE)
            if (per == 1) memcpy(to, rows[key] + offset, WIDE * 4);
            else for (int half = 0; half < WIDE; half += LANES) {
                vh first = *(const vh *)(rows[key] + offset + half * 2), second = *(const vh *)(rows[key + 1] + offset + half * 2);
                *(vi *)(to + half) = __builtin_convertvector(first, vi) | __builtin_convertvector(second, vi) << 16;
            }
}

/* Queries of a head; `sums` [dim / 32][count][32], where a few queries keep each 32 in an order of their own. */
struct Tile { int32_t query[MOST * 256]; vf sums[8][MOST][2]; float best[MOST], total[MOST]; long at[MOST]; int count; };
typedef struct { int32_t keys[2][256 * WIDE], values[KEYS * 256]; struct Tile tiles[]; } Focus; /* what a thread works with */

/* Query m's scores become weights, KEYS / per words; returns what its sums so far are to be multiplied by. */
INLINE float weighed(const int per, const Model *model, long window, struct Tile *tile, int m, long base, vf *scores, vi *words) {
    const vi lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    vf highest = (vf){0} - INFINITY, sum = {0};
    for (int at = 0; at < PARTS; at++) {
        vi seen = lanes + (int32_t)(base + at * LANES);
        vi hidden = seen > (int32_t)tile->at[m];
        if (window) hidden |= seen <= (int32_t)(tile->at[m] - window);
        scores[at] = either(hidden, (vf){0} - INFINITY, scores[at] * model->scaling);
        highest = either(scores[at] > highest, scores[at], highest);
    }
    float before = tile->best[m], most = fmaxf(before, largest(highest));
    for (int at = 0; at < PARTS / per; at++) words[at] = (vi){0};
    if (most == -INFINITY) return 1.0f;
    for (int at = 0; at < PARTS; at++) {
        scores[at] = exponential(scores[at] - most);
        sum += scores[at];
    }
    float change = before == most ? 1.0f : exponential((vf){0} + (before - most))[0];
    tile->total[m] = tile->total[m] * change + added(sum);
    tile->best[m] = most;
    for (int at = 0; at < PARTS / per; at++) words[at] = per == 1 ? (vi)scores[at] : paired((const float *)(scores + 2 * at));
    return change;
}

/* Words of `high` queries, as rows of a product: [KEYS / per][high]. */
INLINE void as_rows(const int per, vi words[16][PARTS], int32_t *to, int high) {
    for (int part = 0; part < PARTS / per; part++) {
#ifdef __AVX512F__
        __m512i turned[16];
        for (int m = 0; m < 16; m++) turned[m] = (__m512i)words[m][part];
        transpose(turned);
        for (int at = 0; at < LANES; at++) _mm512_mask_storeu_epi32(to + (part * LANES + at) * high, (__mmask16)((1 << high) - 1), turned[at]);
#else
        for (int at = 0; at < LANES; at++) for (int m = 0; m < high; m++) to[(part * LANES + at) * high + m] = words[m][part][at];
#endif
    }
}

/* A tile's queries with keys in panels. */
INLINE void look(const int per, const Model *model, long window, const Focus *f, struct Tile *tile, long base) {
    Kernel *const *kernels = per == 1 ? with_fp32 : with_bf16;
    long dim = model->dim;
    int high = size_of(tile->count);
    vf found[2][MOST][2], scores[PARTS];
    vi words[16][PARTS];
    int32_t weights[KEYS * MOST];
    memset(words, 0, sizeof words);
    for (int half = 0; half < 2; half++) {
        memset(found[half], 0, sizeof(vf[2]) * (size_t)high);
        kernels[high](&(Piece){(char *)f->keys[half], 0, (char *)tile->query, 0, 0, 0, dim, dim}, found[half]);
    }
    for (int m = 0; m < tile->count; m++) {
        for (int at = 0; at < PARTS; at++) scores[at] = found[at / 2][m][at % 2];
        float change = weighed(per, model, window, tile, m, base, scores, words[m]);
        if (change != 1.0f)
            for (long panel = 0; panel < dim / WIDE; panel++) for (int half = 0; half < 2; half++) tile->sums[panel][m][half] *= change;
    }
    as_rows(per, words, weights, high);
    for (long panel = 0; panel < dim / WIDE; panel++)
        kernels[high](&(Piece){(char *)(f->values + panel * KEYS / per * WIDE), 0, (char *)weights, 0, 0, 0, KEYS, KEYS}, tile->sums[panel]);
}

#ifdef IN_REGISTERS
/* What `MR` queries take from 32 * COUNT numbers of the values, from panel `panel` on. */
INLINE void take(const int per, const int MR, const int COUNT, const Page *page, long offset, long panel, vi (*words)[PARTS],
                 const float *change, struct Tile *tile) {
    vf out[8][2][2];
    for (int m = 0; m < MR; m++)
        for (int at = 0; at < COUNT; at++)
            for (int half = 0; half < 2; half++) out[m][at][half] = tile->sums[panel + at][m][half] * change[m];
    for (int word = 0; word * per < page->seen; word++)
#pragma GCC unroll 2
        for (int at = 0; at < COUNT; at++) {
            const char *values = page->values[word * per] + offset + (panel + at) * WIDE * 4 / per;
            vi low = *(const vi *)values, high;
            if (per == 1) high = *(const vi *)(values + 64);
            else {
                __m512i first = (__m512i)low, second = _mm512_loadu_si512(page->values[word * per + 1] + (values - page->values[word * per]));
                low = (vi)_mm512_unpacklo_epi16(first, second), high = (vi)_mm512_unpackhi_epi16(first, second);
            }
#pragma GCC unroll 8
            for (int m = 0; m < MR; m++) {
                int32_t weight = ((const int32_t *)words[m])[word];
                out[m][at][0] = dot(per, out[m][at][0], low, weight);
                out[m][at][1] = dot(per, out[m][at][1], high, weight);
            }
        }
    for (int m = 0; m < MR; m++)
        for (int at = 0; at < COUNT; at++)
            for (int half = 0; half < 2; half++) tile->sums[panel + at][m][half] = out[m][at][half];
}

/* Put the numbers of sums, which `take` leaves as it finds them in bfloat16, in order. */
static void in_order(struct Tile *tile, long dim) {
    const __m512i front = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    const __m512i back = _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
    for (long panel = 0; panel < dim / WIDE; panel++)
        for (int m = 0; m < tile->count; m++) {
            __m512 low = (__m512)tile->sums[panel][m][0], high = (__m512)tile->sums[panel][m][1];
            tile->sums[panel][m][0] = (vf)_mm512_permutex2var_ps(low, front, high);
            tile->sums[panel][m][1] = (vf)_mm512_permutex2var_ps(low, back, high);
        }
}

/* A few queries of one head with keys as they lie in the pool. */
INLINE void glance(const int per, const int MR, const Model *model, long window, const Page *page, long offset, struct Tile *tile) {
    long dim = model->dim, panel = 0;
    vf scores[8][PARTS];
    vi words[8][PARTS];
    float change[8];
    for (int part = 0; part < PARTS; part++) {
        vf sums[8];
        for (int m = 0; m < MR; m++) sums[m] = (vf){0};
        for (long at = 0; at < dim / per && part * LANES < page->seen; at += LANES) {
            __m512i a[16];
            for (int key = 0; key < 16; key++) a[key] = _mm512_loadu_si512(page->keys[part * LANES + key] + offset + 4 * at);
            transpose(a);
            const int32_t *query = tile->query + at * MR;
#pragma GCC unroll 16
            for (int word = 0; word < 16; word++)
#pragma GCC unroll 8
                for (int m = 0; m < MR; m++) sums[m] = dot(per, sums[m], (vi)a[word], query[word * MR + m]);
        }
        for (int m = 0; m < MR; m++) scores[m][part] = sums[m];
    }
    for (int m = 0; m < MR; m++) {
        for (int at = 0; at < PARTS / per; at++) words[m][at] = (vi){0};
        change[m] = m < tile->count ? weighed(per, model, window, tile, m, page->base, scores[m], words[m]) : 1.0f;
    }
    if (MR <= 4) for (; panel + 2 <= dim / WIDE; panel += 2) take(per, MR, 2, page, offset, panel, words, change, tile);
    for (; panel < dim / WIDE; panel++) take(per, MR, 1, page, offset, panel, words, change, tile);
}

typedef void Glance(const Model *, long, const Page *, long, struct Tile *);
#define GLANCE(name, per, size) \
    static void name##_##size(const Model *model, long window, const Page *page, long offset, struct Tile *tile) { \
        glance(per, size, model, window, page, offset, tile); \
    }
#define GLANCES(name, per) GLANCE(name, per, 1) GLANCE(name, per, 2) GLANCE(name, per, 4) GLANCE(name, per, 6) GLANCE(name, per, 8) \
    static Glance *const name[] = {0, name##_1, name##_2, 0, name##_4, 0, name##_6, 0, name##_8};
GLANCES(at_fp32, 1)
GLANCES(at_bf16, 2)
#endif

/* What a task has: queries from..to of a run (query q is that of row q / group), for some heads of keys. */
typedef struct { const Run *run; long from, to, head, last_head; } Task;

/* Query q of a head of keys, in a matrix that has `width` numbers for each row. */
INLINE long query_at(const Model *model, const Task *task, long head, long q, long width) {
    long group = model->heads / model->kv_heads;
    return (task->run->first + q / group) * width + (head * group + q % group) * model->dim;
}

INLINE void begin(const int per, const Model *model, const Task *task, const float *qkv, Focus *f) {
    long dim = model->dim, group = model->heads / model->kv_heads, width = (model->heads + 2 * model->kv_heads) * dim;
    struct Tile *tile = f->tiles;
    for (long head = task->head; head < task->last_head; head++)
        for (long q = task->from; q < task->to; tile++) {
            tile->count = (int)(task->to - q < MOST ? task->to - q : MOST);
            for (int m = 0; m < tile->count; m++, q++) {
                const float *row = qkv + query_at(model, task, head, q, width);
                if (per == 1) put_fp32(row, dim, tile->query + m, size_of(tile->count));
                else put_bf16(row, dim, tile->query + m, size_of(tile->count));
                tile->at[m] = task->run->start + q / group;
                tile->best[m] = -INFINITY;
                tile->total[m] = 0;
            }
            memset(tile->sums, 0, sizeof *tile->sums * (size_t)(dim / WIDE));
        }
}

/* Read rows once in the order in which they lie: a processor sees that coming, and not the way of one head through them. */
static void fetch(const char *const *rows, int count, long from, long to) {
    char all = 0;
    for (int lane = 0; lane < count; lane++)
        for (long at = from; at < to; at += 64) all |= *(const volatile char *)(rows[lane] + at);
    (void)all;
}

/* Where keys and values stand; those behind the last one are that one again, and hidden. */
INLINE void turn_to(const int per, const Model *model, const Layer *layer, const Step *step, const Task *task, long base, long last, Page *page) {
    long dim = model->dim, size = step->block_size;
    page->base = base;
    page->seen = last - base + 1 < KEYS ? (int)(last - base + 1) : KEYS;
    for (long lane = 0; lane < KEYS; lane++) {
        long seen = base + lane <= last ? base + lane : last;
        long offset = (task->run->blocks[seen / size] * size + seen % size) * model->kv_heads * dim * 4 / per;
        page->keys[lane] = layer->keys + offset;
        page->values[lane] = layer->values + offset;
    }
    fetch(page->keys, page->seen, task->head * dim * 4 / per, task->last_head * dim * 4 / per);
    fetch(page->values, page->seen, task->head * dim * 4 / per, task->last_head * dim * 4 / per);
}

INLINE void attend_to(const int per, const Model *model, const Layer *layer, const Step *step, const Task *task, const float *qkv, float *mixed, Focus *f) {
    long dim = model->dim, group = model->heads / model->kv_heads, count = task->to - task->from, tiles = (count + MOST - 1) / MOST;
    long start = task->run->start, last = start + (task->to - 1) / group, lowest = start + task->from / group - layer->window + 1;
    Page page;
    begin(per, model, task, qkv, f);
    for (long base = layer->window && lowest > 0 ? lowest / KEYS * KEYS : 0; base <= last; base += KEYS) {
        turn_to(per, model, layer, step, task, base, last, &page);
        for (long head = task->head; head < task->last_head; head++) {
            long offset = head * dim * 4 / per;
            struct Tile *tile = f->tiles + (head - task->head) * tiles;
#ifdef IN_REGISTERS
            if (count <= at_once(per)) {
                (per == 1 ? at_fp32 : at_bf16)[size_of(count)](model, layer->window, &page, offset, tile);
                continue;
            }
#endif
            for (int half = 0; half < 2; half++) across(page.keys + half * WIDE, offset, f->keys[half], dim / per);
            beside(per, page.values, offset, f->values, dim);
            for (long at = 0; at < tiles; at++, tile++)
                if (tile->at[tile->count - 1] >= base) look(per, model, layer->window, f, tile, base);
        }
    }
    struct Tile *tile = f->tiles;
    for (long head = task->head; head < task->last_head; head++)
        for (long q = task->from; q < task->to; tile++) {
#ifdef IN_REGISTERS
            if (per == 2 && count <= at_once(per)) in_order(tile, dim);
#endif
            for (int m = 0; m < tile->count; m++, q++) {
                float *row = mixed + query_at(model, task, head, q, model->heads * dim), share = 1.0f / tile->total[m];
                for (long d = 0; d < dim; d += LANES) *(vf *)(row + d) = tile->sums[d / WIDE][m][d / LANES % 2] * share;
            }
        }
}

static void attend(const Model *model, const Layer *layer, const Step *step, const Task *task, const float *qkv, float *mixed, Focus *f) {
    if (model->per == 1) attend_to(1, model, layer, step, task, qkv, mixed, f);
    else attend_to(2, model, layer, step, task, qkv, mixed, f);
}

static Focus *focus_for(const Model *model) {
    size_t tiles = (size_t)(model->kv_heads > TASK / MOST ? model->kv_heads : TASK / MOST);
    return aligned_alloc(64, (sizeof(Focus) + sizeof(struct Tile) * tiles + 63) / 64 * 64);
}

/* A run of many rows is cut by rows and heads; one of a few keeps the heads together, if there are enough runs. */
static void attention(const Model *model, const Layer *layer, const Step *step, const Space *s, Focus *focus, Team team) {
    long number = 0, group = model->heads / model->kv_heads, heads = model->kv_heads;
    for (const Run *run = step->runs; run < step->runs + step->count; run++) {
        long queries = run->rows * group, together = queries > MOST ? 1 : step->count >= team.count ? heads : (heads + team.count - 1) / team.count;
        for (long from = 0; from < queries; from += TASK)
            for (long head = 0; head < heads; head += together)
                if (number++ % team.count == team.number) {
                    Task task = {run, from, from + TASK < queries ? from + TASK : queries, head, head + together < heads ? head + together : heads};
                    attend(model, layer, step, &task, s->qkv, s->mixed, focus);
                }
    }
}
