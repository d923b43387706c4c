/* A whole step of a decoder of the Llama family (RMSNorm, rotary positions, grouped queries, a gated feed-forward
 * part) over a paged cache of bfloat16: one call, all layers, any number of rows of any sequences.
 *
 * Between the products rows stay float32. Queries, keys, values and the weights of attention are rounded to bfloat16, as
 * torch does. Attention goes over 32 keys at a time, which are laid out as a panel, and keeps a running softmax.
 */
#include "panels.c"

typedef uint16_t vh __attribute__((vector_size(32), aligned(2), may_alias));

#define TASK (4 * MOST) /* queries that share a layout of keys */

typedef struct {
    Linear query, key, value, out, gate, up, down;
    const float *before, *after, *query_norm, *key_norm; /* weights of the norms; the last two may be missing */
    bf16 *keys, *values;                                  /* [slots][kv heads][dim] */
    long window;                                          /* each row sees so many, itself included; 0: all */
} Layer;

typedef struct {
    const Layer *layers;
    long count, width, heads, kv_heads, dim, inner;
    float epsilon, scaling;
    const float *norm;
    Linear head;
} Model;

typedef struct { long first, rows, start; const int32_t *blocks; } Run; /* rows of one sequence, from a position on */

typedef struct {
    float *hidden;            /* [rows][width], the embeddings at first */
    const float *cos, *sin;   /* [rows][dim] */
    const int64_t *slots;     /* [rows] */
    const Run *runs;
    const int64_t *keep;      /* rows whose logits are wanted */
    float *logits;            /* [kept][vocabulary] */
    long rows, count, kept, block_size;
    int threads;
} Step;

typedef struct { float *qkv, *mixed, *gates, *scratch; Rows in, mix, inner, last; } Space;

static void normed(const float *row, const float *weight, float *to, long size, float epsilon) {
    vf squares = {0};
    for (long at = 0; at < size; at += LANES) { vf v = *(const vf *)(row + at); squares += v * v; }
    float scale = 1.0f / sqrtf(added(squares) / size + epsilon);
    for (long at = 0; at < size; at += LANES) *(vf *)(to + at) = *(const vf *)(row + at) * scale * *(const vf *)(weight + at);
}

static void turned(float *row, const float *cos, const float *sin, long dim) { /* the row's halves are one rotation's */
    for (long at = 0; at < dim / 2; at += LANES) {
        vf a = *(vf *)(row + at), b = *(vf *)(row + dim / 2 + at);
        *(vf *)(row + at) = a * *(const vf *)(cos + at) - b * *(const vf *)(sin + at);
        *(vf *)(row + dim / 2 + at) = b * *(const vf *)(cos + dim / 2 + at) + a * *(const vf *)(sin + dim / 2 + at);
    }
}

/* Whoever gets the block next must not find what is no number: a hidden place counts as 0 times its value. */
INLINE bf16 stored(float value) {
    return value != value ? 0 : value > 3.3895e38f ? 0x7f7f : value < -3.3895e38f ? 0xff7f : (bf16)rounded(value);
}

/* Norm and rotation of queries and keys; keys and values go to the pool. */
static void place(const Model *model, const Layer *layer, const Step *step, float *qkv, Team team) {
    long dim = model->dim, all = model->heads + 2 * model->kv_heads, units = step->rows * all;
    for (long unit = part(units, team, team.number); unit < part(units, team, team.number + 1); unit++) {
        long m = unit / all, head = unit % all, other = head - model->heads;
        float *row = qkv + unit * dim;
        const float *norm = other < 0 ? layer->query_norm : layer->key_norm;
        bf16 *to = 0;
        if (other < model->kv_heads) {
            if (norm) normed(row, norm, row, dim, model->epsilon);
            turned(row, step->cos + m * dim, step->sin + m * dim, dim);
            if (other >= 0) to = layer->keys + (step->slots[m] * model->kv_heads + other) * dim;
        } else to = layer->values + (step->slots[m] * model->kv_heads + other - model->kv_heads) * dim;
        for (long at = 0; to && at < dim; at++) to[at] = stored(row[at]);
    }
}

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

static void put_normed(const Model *model, const Step *step, const float *weight, const Rows *x, Team team) {
    float *row = malloc(sizeof(float) * (size_t)model->width);
    for (long m = part(step->rows, team, team.number); m < part(step->rows, team, team.number + 1); m++) {
        normed(step->hidden + m * model->width, weight, row, model->width, model->epsilon);
        put(row, x, m);
    }
    free(row);
}

static void put_gated(const Model *model, const Step *step, float *gates, const Rows *x, Team team) {
    for (long m = part(step->rows, team, team.number); m < part(step->rows, team, team.number + 1); m++) {
        float *gate = gates + m * 2 * model->inner, *up = gate + model->inner;
        for (long at = 0; at < model->inner; at += LANES) {
            vf g = *(vf *)(gate + at);
            *(vf *)(gate + at) = g / (1.0f + exponential(-g)) * *(vf *)(up + at);
        }
        put(gate, x, m);
    }
}

static void layer_step(const Model *model, const Layer *layer, const Step *step, Space *s, Team team) {
    long dim = model->dim, all = (model->heads + 2 * model->kv_heads) * dim, wide = model->heads * dim;
    put_normed(model, step, layer->before, &s->in, team);
    meet(team);
    product(&layer->query, &s->in, s->qkv, all, 0, team);
    product(&layer->key, &s->in, s->qkv + wide, all, 0, team);
    product(&layer->value, &s->in, s->qkv + wide + model->kv_heads * dim, all, 0, team);
    meet(team);
    place(model, layer, step, s->qkv, team);
    meet(team);
    attention(model, layer, step, s->qkv, s->mixed, team);
    meet(team);
    for (long m = part(step->rows, team, team.number); m < part(step->rows, team, team.number + 1); m++)
        put(s->mixed + m * wide, &s->mix, m);
    meet(team);
    product(&layer->out, &s->mix, step->hidden, model->width, 1, team);
    meet(team);
    put_normed(model, step, layer->after, &s->in, team);
    meet(team);
    product(&layer->gate, &s->in, s->gates, 2 * model->inner, 0, team);
    product(&layer->up, &s->in, s->gates + model->inner, 2 * model->inner, 0, team);
    meet(team);
    put_gated(model, step, s->gates, &s->inner, team);
    meet(team);
    product(&layer->down, &s->inner, step->hidden, model->width, 1, team);
    meet(team);
}

/* Bring all rows through all layers: the pools get their keys and values, `logits` those of the rows in `keep`. */
void native_step(const Model *model, const Step *step) {
    const Layer *one = model->layers;
    long rows = step->rows, all = (model->heads + 2 * model->kv_heads) * model->dim, wide = model->heads * model->dim;
    long floats = rows * (all + wide + 2 * model->inner) + step->kept * model->width;
    long bytes = 2 * rows_bytes(rows, model->width) + rows_bytes(rows, wide) + rows_bytes(rows, model->inner);
    char *memory = aligned_alloc(64, (size_t)(floats * 4 + bytes + 127) / 64 * 64), *rest = memory;
    Space s;
    s.in = rows_for(&one->query, rows, &rest);
    s.mix = rows_for(&one->out, rows, &rest);
    s.inner = rows_for(&one->down, rows, &rest);
    s.last = rows_for(&model->head, step->kept, &rest);
    s.qkv = (float *)rest;
    s.mixed = s.qkv + rows * all;
    s.gates = s.mixed + rows * wide;
    s.scratch = s.gates + rows * 2 * model->inner;
    Gate gate = {0, 0, 0};
#pragma omp parallel num_threads(step->threads)
    {
        Team team = {omp_get_thread_num(), omp_get_num_threads(), &gate};
        for (long at = 0; at < model->count; at++) layer_step(model, model->layers + at, step, &s, team);
        for (long m = part(step->kept, team, team.number); m < part(step->kept, team, team.number + 1); m++) {
            normed(step->hidden + step->keep[m] * model->width, model->norm, s.scratch + m * model->width, model->width, model->epsilon);
            put(s.scratch + m * model->width, &s.last, m);
        }
        meet(team);
        if (step->kept) product(&model->head, &s.last, step->logits, model->head.n, 0, team);
    }
    free(memory);
}
