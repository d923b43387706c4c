/* 32 rows of `dim` bfloat16 as a panel [dim / 2][32][2]. */
static void across(const bf16 *const *rows, long offset, int32_t *to, long dim) {
#ifdef __AVX512F__
    for (int half = 0; half < 2; half++)
        for (long d = 0; d < dim / 2; d += LANES) {
            __m512i a[16], b[16];
            for (int at = 0; at < 16; at++) a[at] = _mm512_loadu_si512(rows[half * 16 + at] + offset + 2 * d);
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
                _mm512_storeu_si512(to + (d + at) * WIDE + half * 16, _mm512_shuffle_i32x4(p, q, 0x88));
                _mm512_storeu_si512(to + (d + at + 8) * WIDE + half * 16, _mm512_shuffle_i32x4(p, q, 0xdd));
                _mm512_storeu_si512(to + (d + at + 4) * WIDE + half * 16, _mm512_shuffle_i32x4(r, s, 0x88));
                _mm512_storeu_si512(to + (d + at + 12) * WIDE + half * 16, _mm512_shuffle_i32x4(r, s, 0xdd));
            }
        }
#else
    for (int row = 0; row < WIDE; row++)
        for (long d = 0; d < dim / 2; d++) memcpy(to + d * WIDE + row, rows[row] + offset + 2 * d, 4);
#endif
}

/* The same 32 rows as panels [dim / 32][16][32][2]: two rows' numbers side by side. */
static void beside(const bf16 *const *rows, long offset, int32_t *to, long dim) {
    for (long panel = 0; panel < dim / WIDE; panel++)
        for (int pair = 0; pair < WIDE / 2; pair++, to += WIDE)
            for (int half = 0; half < WIDE; half += LANES) {
                vh first = *(const vh *)(rows[2 * pair] + offset + panel * WIDE + half);
                vh second = *(const vh *)(rows[2 * pair + 1] + offset + panel * WIDE + half);
                *(vi *)(to + half) = __builtin_convertvector(first, vi) | __builtin_convertvector(second, vi) << 16;
            }
}

typedef struct { /* what a thread's attention works with: 32 keys of one head, and tiles of queries */
    int32_t keys[128 * WIDE], values[16 * 256];
    struct Tile { int32_t query[MOST * 128]; float sums[MOST * 256], best[MOST], total[MOST]; long at[MOST]; int count; } tiles[];
} Focus;

/* A tile's queries with 32 keys, of which the first stands at `base`. */
static void look(const Model *model, const Layer *layer, const Focus *f, struct Tile *tile, long base) {
    long dim = model->dim;
    int high = size_of(tile->count);
    vf scores[MOST][2], out[MOST][2];
    int32_t weights[16 * MOST];
    memset(scores, 0, sizeof scores);
    memset(weights, 0, sizeof weights);
    with_bf16[high]((Piece){(char *)f->keys, 0, (char *)tile->query, 0, 0, 0, dim, dim}, scores);
    const vi lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    for (int m = 0; m < tile->count; m++) {
        for (int half = 0; half < 2; half++) {
            vi seen = lanes + (int32_t)(base + half * LANES);
            vi hidden = seen > (int32_t)tile->at[m];
            if (layer->window) hidden |= seen <= (int32_t)(tile->at[m] - layer->window);
            scores[m][half] = either(hidden, (vf){0} - INFINITY, scores[m][half] * model->scaling);
        }
        float most = fmaxf(tile->best[m], fmaxf(largest(scores[m][0]), largest(scores[m][1])));
        if (most == -INFINITY) continue;
        float change = expf(tile->best[m] - most), *sums = tile->sums + m * dim;
        for (int half = 0; half < 2; half++) scores[m][half] = exponential(scores[m][half] - most);
        tile->total[m] = tile->total[m] * change + added(scores[m][0] + scores[m][1]);
        tile->best[m] = most;
        put_bf16((float *)scores[m], WIDE, weights + m, high);
        if (change != 1.0f) for (long d = 0; d < dim; d += LANES) *(vf *)(sums + d) *= change;
    }
    for (long panel = 0; panel < dim / WIDE; panel++) {
        memset(out, 0, sizeof out);
        with_bf16[high]((Piece){(char *)(f->values + panel * 16 * WIDE), 0, (char *)weights, 0, 0, 0, WIDE, WIDE}, out);
        for (int m = 0; m < tile->count; m++)
            for (int half = 0; half < 2; half++) *(vf *)(tile->sums + m * dim + panel * WIDE + half * LANES) += out[m][half];
    }
}

/* What a task has: queries from..to of a run (query q is that of row q / group), for some heads of keys. */
typedef struct { const Run *run; long from, to, head, last_head; } Task;

/* Query q of a head of keys, in a matrix that has `width` numbers for each row. */
INLINE long query_at(const Model *model, const Task *task, long head, long q, long width) {
    long group = model->heads / model->kv_heads;
    return (task->run->first + q / group) * width + (head * group + q % group) * model->dim;
}

static void begin(const Model *model, const Task *task, const float *qkv, Focus *f) {
    long dim = model->dim, group = model->heads / model->kv_heads, width = (model->heads + 2 * model->kv_heads) * dim;
    struct Tile *tile = f->tiles;
    for (long head = task->head; head < task->last_head; head++)
        for (long q = task->from; q < task->to; tile++) {
            tile->count = (int)(task->to - q < MOST ? task->to - q : MOST);
            for (int m = 0; m < tile->count; m++, q++) {
                put_bf16(qkv + query_at(model, task, head, q, width), dim, tile->query + m, size_of(tile->count));
                tile->at[m] = task->run->start + q / group;
                tile->best[m] = -INFINITY;
                tile->total[m] = 0;
            }
            memset(tile->sums, 0, sizeof(float) * (size_t)(tile->count * dim));
        }
}

/* Read rows once in the order in which they lie: a processor sees that coming, and not the way of one head through them. */
static void fetch(const bf16 *const *rows, long from, long to) {
    uint32_t all = 0;
    for (int lane = 0; lane < WIDE; lane++)
        for (long at = from; at < to; at += 32) all |= *(const volatile bf16 *)(rows[lane] + at);
    (void)all;
}


static void attend(const Model *model, const Layer *layer, const Step *step, const Task *task, const float *qkv, float *mixed, Focus *f) {
    long dim = model->dim, group = model->heads / model->kv_heads, size = step->block_size, tiles = (task->to - task->from + MOST - 1) / MOST;
    long start = task->run->start, last = start + (task->to - 1) / group, lowest = start + task->from / group - layer->window + 1;
    begin(model, task, qkv, f);
    for (long base = layer->window && lowest > 0 ? lowest / WIDE * WIDE : 0; base <= last; base += WIDE) {
        const bf16 *keys[WIDE], *values[WIDE];
        for (long lane = 0; lane < WIDE; lane++) {
            long seen = base + lane <= last ? base + lane : last;
            long offset = (task->run->blocks[seen / size] * size + seen % size) * model->kv_heads * dim;
            keys[lane] = layer->keys + offset;
            values[lane] = layer->values + offset;
        }
        fetch(keys, task->head * dim, task->last_head * dim);
        fetch(values, task->head * dim, task->last_head * dim);
        for (long head = task->head; head < task->last_head; head++) {
            across(keys, head * dim, f->keys, dim);
            beside(values, head * dim, f->values, dim);
            struct Tile *tile = f->tiles + (head - task->head) * tiles;
            for (long at = 0; at < tiles; at++, tile++) if (tile->at[tile->count - 1] >= base) look(model, layer, f, tile, base);
        }
    }
    struct Tile *tile = f->tiles;
    for (long head = task->head; head < task->last_head; head++)
        for (long q = task->from; q < task->to; tile++)
            for (int m = 0; m < tile->count; m++, q++) {
                float *row = mixed + query_at(model, task, head, q, model->heads * dim), share = 1.0f / tile->total[m];
                for (long d = 0; d < dim; d++) row[d] = tile->sums[m * dim + d] * share;
            }
}

/* A run of many rows is cut by rows and heads; one of a few keeps the heads together, if there are enough runs. */
static void attention(const Model *model, const Layer *layer, const Step *step, const float *qkv, float *mixed, Team team) {
    long number = 0, group = model->heads / model->kv_heads, heads = model->kv_heads;
    Focus *focus = aligned_alloc(64, (sizeof(Focus) + sizeof(struct Tile) * (size_t)(heads + TASK / MOST) + 63) / 64 * 64);
    for (const Run *run = step->runs; run < step->runs + step->count; run++) {
        long queries = run->rows * group, together = queries > MOST ? 1 : step->count >= team.count ? heads : (heads + team.count - 1) / team.count;
        for (long from = 0; from < queries; from += TASK)
            for (long head = 0; head < heads; head += together)
                if (number++ % team.count == team.number) {
                    Task task = {run, from, from + TASK < queries ? from + TASK : queries, head, head + together < heads ? head + together : heads};
                    attend(model, layer, step, &task, qkv, mixed, focus);
                }
    }
    free(focus);
}

