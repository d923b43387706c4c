// What benchmarks/engine.py measures of llama.cpp: tokens a second of decoding one and many sequences, and of a prompt.
//
//     llama_speed MODEL.gguf threads short long streams answer tries
//
// Prints JSON. Only llama.h is used; build: see `_tool` in engine.py. The best of the tries counts.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <string>
#include <vector>

#include "llama.h"

static int threads = 1;

// Seconds of the processor per thread, or of the clock on the wall (BENCH_CLOCK=wall).
static double now() {
    bool wall = getenv("BENCH_CLOCK") && std::string(getenv("BENCH_CLOCK")) == "wall";
    timespec time;
    clock_gettime(wall ? CLOCK_MONOTONIC : CLOCK_PROCESS_CPUTIME_ID, &time);
    return (time.tv_sec + time.tv_nsec * 1e-9) / (wall ? 1 : threads);
}

static void quiet(ggml_log_level, const char *, void *) {}

// One prompt of `length` tokens for each sequence, in one batch; then `steps` tokens each. Returns seconds of both.
static std::pair<double, double> run(llama_context * context, int streams, int length, int steps) {
    llama_memory_clear(llama_get_memory(context), true);
    llama_batch batch = llama_batch_init(streams * length, 0, 1);
    auto add = [&](int token, int position, int sequence, bool wanted) {
        batch.token[batch.n_tokens] = token;
        batch.pos[batch.n_tokens] = position;
        batch.n_seq_id[batch.n_tokens] = 1;
        batch.seq_id[batch.n_tokens][0] = sequence;
        batch.logits[batch.n_tokens++] = wanted;
    };
    for (int row = 0; row < streams; row++)
        for (int at = 0; at < length; at++) add(2 + (7919 * (at + 31 * row)) % 31000, at, row, at == length - 1);
    double began = now();
    if (llama_decode(context, batch)) exit(1);
    llama_synchronize(context);
    double prompt = now() - began;
    began = now();
    for (int step = 0; step < steps; step++) {
        batch.n_tokens = 0;
        for (int row = 0; row < streams; row++) add(2 + (step * 17 + row) % 31000, length + step, row, true);
        if (llama_decode(context, batch)) exit(1);
        llama_synchronize(context);
    }
    double decode = now() - began;
    llama_batch_free(batch);
    return {prompt, decode};
}

int main(int, char ** arguments) {
    auto number = [&](int at) { return atoi(arguments[at]); };
    threads = number(2);
    int brief = number(3), length = number(4), streams = number(5), answer = number(6);
    if (!getenv("LLAMA_LOUD")) llama_log_set(quiet, nullptr);
    llama_backend_init();
    llama_model_params model_params = llama_model_default_params();
    llama_model * model = llama_model_load_from_file(arguments[1], model_params);
    if (!model) return 1;
    llama_context_params params = llama_context_default_params();
    params.n_ctx = streams * 1024;  // each sequence has its share
    params.n_batch = params.n_ubatch = std::max(length, streams * brief);
    params.n_seq_max = streams;
    params.n_threads = params.n_threads_batch = threads;
    llama_context * context = llama_init_from_model(model, params);
    if (!context) return 1;
    run(context, 1, 8, 2);
    double one = 0, many = 0, prefill = 0;
    for (int attempt = 0; attempt < number(7); attempt++) {
        int steps = answer - 1;
        one = std::max(one, steps / run(context, 1, brief, steps).second);
        many = std::max(many, streams * steps / run(context, streams, brief, steps).second);
        prefill = std::max(prefill, length / run(context, 1, length, 0).first);
    }
    printf("{\"decode-1\": %f, \"decode-16\": %f, \"prefill\": %f}\n", one, many, prefill);
}
