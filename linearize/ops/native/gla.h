// Gated linear attention in chunks: what both passes share.
//
// The formulas are those of `_factored` in ops/gla.py. A chunk is as long as its decays allow, down
// to one token, so that any gates are exact. One task is one key/value head of one sequence: what it
// works on stays in the processor's own cache.
#pragma once
#include <math.h>
#include "matrix.h"

#define CHUNK 64
#define ROWS_AT_ONCE 16  // of a chunk's triangle: what lies above them is not computed
#define MAX_RANGE 80.0f  // exp() of half of it, and of minus half, fit single precision

typedef struct {
    long sequences, heads, group, k_size, v_size, gates;  // gates: k_size, or 1 per head
    const int64_t *bounds;  // [sequences + 1] tokens of a packed row; NULL = rows of `length`
    long length;
    const float *q, *k, *v, *g;  // [rows, tokens, heads, *]; strides: row, token, head
    long q_at[3], k_at[3], v_at[3], g_at[3];
} Input;

typedef struct {  // one task's part of the input, and its place in dense outputs
    const float *q, *k, *v, *g;
    long tokens, first, head;  // `first`: of its tokens in the outputs [rows * tokens, heads, *]
} Part;

typedef struct {  // one chunk: keys and queries with their decays in them
    float *up, *keys, *across, *queries, *scores, *middle, *state;
    // up, keys, queries [CHUNK, K]; across [K, CHUNK]; scores [CHUNK, CHUNK]; state [K, V]
} Work;

static inline Part part_of(const Input *x, long task) {
    long s = task / x->heads, head = task % x->heads;
    long row = x->bounds ? 0 : s, from = x->bounds ? x->bounds[s] : 0;
    Part p = {.head = head, .first = x->bounds ? from : s * x->length};
    p.tokens = x->bounds ? x->bounds[s + 1] - from : x->length;
    p.q = x->q + row * x->q_at[0] + from * x->q_at[1] + head * x->group * x->q_at[2];
    p.k = x->k + row * x->k_at[0] + from * x->k_at[1] + head * x->k_at[2];
    p.v = x->v + row * x->v_at[0] + from * x->v_at[1] + head * x->v_at[2];
    p.g = x->g + row * x->g_at[0] + from * x->g_at[1] + head * x->g_at[2];
    return p;
}

static inline Work work_in(float **memory, const Input *x) {
    long K = x->k_size, V = x->v_size;
    return (Work){take(memory, CHUNK * K), take(memory, CHUNK * K), take(memory, CHUNK * K),
                  take(memory, CHUNK * K), take(memory, CHUNK * CHUNK), take(memory, K),
                  take(memory, K * V)};
}

static inline long work_size(const Input *x) {
    return 4 * CHUNK * x->k_size + CHUNK * CHUNK + up_to(x->k_size, 16) + x->k_size * x->v_size;
}

// Tokens of the chunk that begins at `at`; it ends before the next multiple of CHUNK. Writes to w.up
// exp(b - m): b the log decay from the chunk's start, m half of the whole chunk's; to w.middle
// exp(m). A lone token gets none of it.
static inline long open_chunk(const Input *x, const Part *p, long at, Work w) {
    long K = x->k_size, most = CHUNK - at % CHUNK;
    if (most > p->tokens - at) most = p->tokens - at;
    long n = most;
    const float *g = p->g + at * x->g_at[1];
    if (x->gates == 1) {
        float b[CHUNK], sum = 0;
        for (long i = 0; i < most; i++) b[i] = sum += g[i * x->g_at[1]];
        while (n > 1 && !(-b[n - 1] <= MAX_RANGE)) n /= 2;
        if (n == 1) return 1;
        for (long i = 0; i < n; i++) {
            vf up = vexp(all(b[i] - b[n - 1] / 2));
            for (long k = 0; k < K; k += VL) store(w.up + i * K + k, up);
        }
        for (long k = 0; k < K; k++) w.middle[k] = expf(b[n - 1] / 2);
        return n;
    }
    for (long k = 0; k < K; k += VL) store(w.up + k, load(g + k));
    for (long i = 1; i < most; i++)
        for (long k = 0; k < K; k += VL)
            store(w.up + i * K + k, load(w.up + (i - 1) * K + k) + load(g + i * x->g_at[1] + k));
    for (; n > 1; n /= 2) {
        const float *b = w.up + (n - 1) * K;
        int fits = 1;
        for (long k = 0; k < K; k++) fits &= -b[k] <= MAX_RANGE;
        if (fits) break;
    }
    if (n == 1) return 1;
    for (long k = 0; k < K; k += VL) {
        vf m = load(w.up + (n - 1) * K + k) * 0.5f;
        store(w.middle + k, vexp(m));
        for (long i = 0; i < n; i++) store(w.up + i * K + k, vexp(load(w.up + i * K + k) - m));
    }
    return n;
}

// Keys divided by w.up, as they are and transposed.
static inline void scale_keys(const Input *x, const Part *p, long at, long n, Work w) {
    long K = x->k_size;
    for (long i = 0; i < n; i++)
        for (long k = 0; k < K; k += VL)
            store(w.keys + i * K + k,
                  load(p->k + (at + i) * x->k_at[1] + k) / load(w.up + i * K + k));
    transpose(n, K, w.keys, K, w.across, CHUNK, up_to(n, LEAST));
}

static inline void scale_queries(const Input *x, const Part *p, long at, long n, long h, Work w) {
    long K = x->k_size;
    for (long i = 0; i < n; i++)
        for (long k = 0; k < K; k += VL)
            store(w.queries + i * K + k, load(p->q + h * x->q_at[2] + (at + i) * x->q_at[1] + k) *
                                             load(w.up + i * K + k));
}

// to[K, V] = from[K, V] with row k times by[k]
static inline void scale_rows(long K, long V, const float *from, const float *by, float *to) {
    for (long k = 0; k < K; k++)
        for (long v = 0; v < V; v += VL) store(to + k * V + v, load(from + k * V + v) * by[k]);
}

// state = exp(m) (w.state + keys^T v), where w.state = exp(m) (the state before)
static inline void move_on(const Input *x, const Part *p, long at, long n, Work w, float *state) {
    long K = x->k_size, V = x->v_size;
    product(K, V, n, w.across, CHUNK, 1, p->v + at * x->v_at[1], x->v_at[1], w.state, V, 1);
    scale_rows(K, V, w.state, w.middle, state);
}

// Scores of `rows` queries from `first` on with the keys up to each: scores[rows, up_to(end, LEAST)]
static inline void score(long K, long first, long rows, const float *left, const float *across,
                  float *scores) {
    long width = up_to(first + rows, LEAST);
    product(rows, width, K, left + first * K, K, 1, across, CHUNK, scores, CHUNK, 0);
    for (long i = 0; i < rows; i++)
        for (long j = first + i + 1; j < width; j++) scores[i * CHUNK + j] = 0;
}

INLINE float gate_at(const Input *x, const Part *p, long at, long k) {
    return p->g[at * x->g_at[1] + (x->gates == 1 ? 0 : k)];
}

// One token by the definition.
static inline void step(const Input *x, const Part *p, long at, float *state) {
    const float *v = p->v + at * x->v_at[1], *key = p->k + at * x->k_at[1];
    for (long k = 0; k < x->k_size; k++) {
        float keep = expf(gate_at(x, p, at, k)), *row = state + k * x->v_size;
        for (long j = 0; j < x->v_size; j += VL)
            store(row + j, load(row + j) * keep + load(v + j) * key[k]);
    }
}
