/* A whole step of a decoder of the Llama family (RMSNorm, rotary positions, grouped queries, a gated feed-forward
 * part) over a paged cache of bfloat16 or float32: one call, all layers, any number of rows of any sequences.
 *
 * Between the products rows stay float32. Queries, keys, values and the weights of attention are rounded to what the
 * cache holds, as torch does. Attention goes over 64 keys at a time, which are laid out as panels, and keeps a running softmax.
 */
#include "panels.c"

typedef struct {
    Linear query, key, value, out, gate, up, down;
    const float *before, *after, *query_norm, *key_norm; /* weights of the norms; the last two may be missing */
    char *keys, *values;                                  /* [slots][kv heads][dim], `per` numbers in 32 bits */
    long window;                                          /* each row sees so many, itself included; 0: all */
} Layer;

typedef struct {
    const Layer *layers;
    long count, width, heads, kv_heads, dim, inner;
    float epsilon, scaling, turn_scaling;
    const float *norm, *frequencies;                      /* [dim / 2], of the rotary positions */
    const char *embedding;                                /* [vocabulary][width] */
    long vocabulary, per;                                 /* 1: embedding and cache are float32; 2: bfloat16 */
    Linear head;
} Model;

typedef struct { long first, rows, start; const int32_t *blocks; } Run; /* rows of one sequence, from a position on */

typedef struct {
    const int64_t *ids, *positions, *slots; /* [rows] */
    const Run *runs;
    const int64_t *keep;      /* rows whose logits are wanted */
    float *logits;            /* [kept][outputs of the head] */
    int64_t *best;            /* [kept]: the first of the largest, or -1 where that is no number */
    long rows, count, kept, block_size;
    int threads;
} Step;

typedef struct {
    float *hidden, *cos, *sin; /* [rows][width], [rows][dim / 2] */
    float *qkv, *mixed, *gates, *scratch;
    Rows in, mix, inner, last;
} Space;

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
        *(vf *)(row + dim / 2 + at) = b * *(const vf *)(cos + at) + a * *(const vf *)(sin + at);
    }
}

/* Embeddings of the rows, and the turns of their positions. */
static void start(const Model *model, const Step *step, const Space *s, Team team) {
    long half = model->dim / 2;
    for (long m = part(step->rows, team, team.number); m < part(step->rows, team, team.number + 1); m++) {
        float *to = s->hidden + m * model->width;
        int known = step->ids[m] >= 0 && step->ids[m] < model->vocabulary;
        const char *row = model->embedding + (known ? step->ids[m] * model->width * 4 / model->per : 0);
        for (long at = 0; at < model->width; at++)
            to[at] = !known ? NAN : model->per == 1 ? ((const float *)row)[at] : as_float((uint32_t)((const bf16 *)row)[at] << 16);
        for (long at = 0; at < half; at++) {
            float angle = (float)step->positions[m] * model->frequencies[at];
            s->cos[m * half + at] = cosf(angle) * model->turn_scaling;
            s->sin[m * half + at] = sinf(angle) * model->turn_scaling;
        }
    }
}

/* Whoever gets the block next must not find what is no number: a hidden place counts as 0 times its value. */
static void store(const float *row, char *to, long dim, long per) {
    const vf most = (vf){0} + as_float(per == 1 ? 0x7f7fffff : 0x7f7f0000);
    for (long at = 0; at < dim; at += 2 * LANES) {
        vf values[2];
        for (int half = 0; half < 2; half++) {
            vf v = *(const vf *)(row + at + half * LANES);
            v = either(v == v, v, (vf){0});
            v = either(v > most, most, v);
            values[half] = either(v < -most, -most, v);
        }
        vi pairs = paired((const float *)values);
        if (per == 1) memcpy(to + at * 4, values, sizeof values);
        else memcpy(to + at * 2, &pairs, sizeof pairs);
    }
}

static int64_t first_largest(const float *row, long size) {
    vf most = (vf){0} - INFINITY;
    vi odd = {0};
    long at = 0;
    for (; at + LANES <= size; at += LANES) {
        vf v = *(const vf *)(row + at);
        most = either(v > most, v, most);
        odd |= v != v;
    }
    float best = largest(most);
    int spoilt = total(odd) != 0;
    for (; at < size; at++) best = row[at] > best ? row[at] : best, spoilt |= row[at] != row[at];
    if (spoilt || !(best > -INFINITY && best < INFINITY)) return -1;
    for (at = 0; row[at] != best; at++) {}
    return at;
}

/* Norm and rotation of queries and keys; keys and values go to the pool. */
static void place(const Model *model, const Layer *layer, const Step *step, const Space *s, Team team) {
    float *qkv = s->qkv;
    long dim = model->dim, all = model->heads + 2 * model->kv_heads, units = step->rows * all;
    for (long unit = part(units, team, team.number); unit < part(units, team, team.number + 1); unit++) {
        long m = unit / all, head = unit % all, other = head - model->heads;
        float *row = qkv + unit * dim;
        const float *norm = other < 0 ? layer->query_norm : layer->key_norm;
        char *to = 0;
        long place = step->slots[m] * model->kv_heads + other;
        if (other < model->kv_heads) {
            if (norm) normed(row, norm, row, dim, model->epsilon);
            turned(row, s->cos + m * dim / 2, s->sin + m * dim / 2, dim);
            if (other >= 0) to = layer->keys + place * dim * 4 / model->per;
        } else to = layer->values + (place - model->kv_heads) * dim * 4 / model->per;
        if (to) store(row, to, dim, model->per);
    }
}

#include "attention.c"

static void put_normed(const Model *model, const Step *step, const float *hidden, const float *weight, const Rows *x, Team team) {
    float *row = malloc(sizeof(float) * (size_t)model->width);
    for (long m = part(step->rows, team, team.number); m < part(step->rows, team, team.number + 1); m++) {
        normed(hidden + m * model->width, weight, row, model->width, model->epsilon);
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

static void layer_step(const Model *model, const Layer *layer, const Step *step, Space *s, Focus *focus, Team team) {
    long dim = model->dim, all = (model->heads + 2 * model->kv_heads) * dim, wide = model->heads * dim;
    put_normed(model, step, s->hidden, layer->before, &s->in, team);
    meet(team);
    product(&layer->query, &s->in, s->qkv, all, 0, team);
    product(&layer->key, &s->in, s->qkv + wide, all, 0, team);
    product(&layer->value, &s->in, s->qkv + wide + model->kv_heads * dim, all, 0, team);
    meet(team);
    place(model, layer, step, s, team);
    meet(team);
    attention(model, layer, step, s, focus, team);
    meet(team);
    for (long m = part(step->rows, team, team.number); m < part(step->rows, team, team.number + 1); m++)
        put(s->mixed + m * wide, &s->mix, m);
    meet(team);
    product(&layer->out, &s->mix, s->hidden, model->width, 1, team);
    meet(team);
    put_normed(model, step, s->hidden, layer->after, &s->in, team);
    meet(team);
    product(&layer->gate, &s->in, s->gates, 2 * model->inner, 0, team);
    product(&layer->up, &s->in, s->gates + model->inner, 2 * model->inner, 0, team);
    meet(team);
    put_gated(model, step, s->gates, &s->inner, team);
    meet(team);
    product(&layer->down, &s->inner, s->hidden, model->width, 1, team);
    meet(team);
}

/* Room for all that lies between; returns what is to be freed. */
static char *spread(const Model *model, const Step *step, Space *s) {
    const Layer *one = model->layers;
    long rows = step->rows, all = (model->heads + 2 * model->kv_heads) * model->dim, wide = model->heads * model->dim;
    long floats = rows * (model->width + model->dim + all + wide + 2 * model->inner) + step->kept * model->width;
    long bytes = 2 * rows_bytes(rows, model->width) + rows_bytes(rows, wide) + rows_bytes(rows, model->inner);
    char *memory = aligned_alloc(64, (size_t)(floats * 4 + bytes + 127) / 64 * 64), *rest = memory;
    s->in = rows_for(&one->query, rows, &rest);
    s->mix = rows_for(&one->out, rows, &rest);
    s->inner = rows_for(&one->down, rows, &rest);
    s->last = rows_for(&model->head, step->kept, &rest);
    s->hidden = (float *)(((uintptr_t)rest + 63) & ~(uintptr_t)63);
    s->cos = s->hidden + rows * model->width;
    s->sin = s->cos + rows * model->dim / 2;
    s->qkv = s->sin + rows * model->dim / 2;
    s->mixed = s->qkv + rows * all;
    s->gates = s->mixed + rows * wide;
    s->scratch = s->gates + rows * 2 * model->inner;
    return memory;
}

/* Bring all rows through all layers: the pools get their keys and values, `logits` those of the rows in `keep`. */
void native_step(const Model *model, const Step *step) {
    Space s;
    char *memory = spread(model, step, &s);
    Gate gate = {0, 0, 0};
#pragma omp parallel num_threads(step->threads)
    {
        Team team = {omp_get_thread_num(), omp_get_num_threads(), &gate};
        Focus *focus = focus_for(model);
        start(model, step, &s, team); /* each thread's rows are its own until the first product */
        for (long at = 0; at < model->count; at++) layer_step(model, model->layers + at, step, &s, focus, team);
        for (long m = part(step->kept, team, team.number); m < part(step->kept, team, team.number + 1); m++) {
            float *row = s.scratch + m * model->width;
            normed(s.hidden + step->keep[m] * model->width, model->norm, row, model->width, model->epsilon);
            put(row, &s.last, m);
        }
        meet(team);
        if (step->kept) product(&model->head, &s.last, step->logits, model->head.n, 0, team);
        meet(team);
        for (long m = part(step->kept, team, team.number); m < part(step->kept, team, team.number + 1); m++)
            step->best[m] = first_largest(step->logits + m * model->head.n, model->head.n);
        free(focus);
    }
    free(memory);
}
