// Softmax attention over a sliding window, and its gradients; nothing is kept between the passes.
//
// A strip of queries looks at the keys that any of its queries sees; scores of what the window's two
// slanting ends cut off are set to nothing. Source of the formulas: ops/window.py, `dense`.
#include <math.h>
#include "matrix.h"

#define STRIP 16   // queries at once: their scores are a strip of the band
#define TALL (32 * STRIP)  // queries of one task in the forward pass

typedef struct {
    long rows, queries, keys, heads, group, k_size, v_size, window;
    float scale;
    const int64_t *begins;  // [queries] first key that a query may see; NULL = all. One row then.
    const float *q, *k, *v;  // [rows, tokens, heads, *]; strides: row, token, head
    long q_at[3], k_at[3], v_at[3];
} Input;

typedef struct {  // keys that a strip sees, [from, to), from a multiple of LEAST behind `origin`
    long from, to, width;
} Span;

static long first_key(const Input *x, long query) {
    long first = query + x->keys - x->queries - x->window + 1;
    long begin = x->begins ? x->begins[query] : 0;
    return first > begin ? first : begin;
}

static Span span_of(const Input *x, long at, long count, long origin) {
    long from = first_key(x, at);
    for (long i = 1; x->begins && i < count; i++)
        if (first_key(x, at + i) < from) from = first_key(x, at + i);
    from -= (from - origin) % LEAST;
    long to = at + count + x->keys - x->queries;
    return (Span){from, to, up_to(to - from, LEAST)};
}

// p[count, width] = softmax of scale q k^T over what each query sees; 0 elsewhere.
static void look(const Input *x, long at, long count, Span s, const float *q, const float *across,
                 long across_at, float *p) {
    product(count, s.width, x->k_size, q, x->q_at[1], 1, across, across_at, p, s.width, 0);
    for (long i = 0; i < count; i++) {
        float *row = p + i * s.width;
        long first = first_key(x, at + i) - s.from;
        long end = at + i + x->keys - x->queries + 1 - s.from;
        for (long j = 0; j < first; j++) row[j] = -INFINITY;
        for (long j = end; j < s.width; j++) row[j] = -INFINITY;
        vf most = load(row), sum = {};
        for (long j = VL; j < s.width; j += VL) {
            vf own = load(row + j);
            most = choose(own > most, own, most);
        }
        float top = greatest(most);
        for (long j = 0; j < s.width; j += VL) {
            vf own = vexp((load(row + j) - top) * x->scale);
            store(row + j, own);
            sum += own;
        }
        float share = 1 / total(sum);
        for (long j = 0; j < s.width; j += VL) store(row + j, load(row + j) * share);
    }
}

// No strip sees more than its window, itself, and the rounding at both ends.
static long most_seen(const Input *x) {
    return up_to(x->window < x->keys ? x->window : x->keys, LEAST) + 3 * LEAST;
}

long window_forward_scratch(const Input *x) {
    return x->k_size * (most_seen(x) + TALL) + STRIP * most_seen(x);
}

// o [rows, queries, H, V] dense.
void window_forward(const Input *x, float *o, float *scratch, int threads) {
    long K = x->k_size, V = x->v_size, wide = x->heads * x->group * V;
    long blocks = (x->queries + TALL - 1) / TALL;
#pragma omp parallel num_threads(threads)
    {
        long across_at = most_seen(x) + TALL;
        float *across = scratch + omp_get_thread_num() * window_forward_scratch(x);
        float *p = across + K * across_at;
#pragma omp for schedule(dynamic)
        for (long task = 0; task < x->rows * x->heads * blocks; task++) {
            long row = task / (x->heads * blocks), head = task / blocks % x->heads;
            long at = task % blocks * TALL, end = at + TALL < x->queries ? at + TALL : x->queries;
            Span all_keys = span_of(x, at, end - at, 0);
            long origin = all_keys.from;
            const float *q = x->q + row * x->q_at[0] + head * x->group * x->q_at[2];
            const float *k = x->k + row * x->k_at[0] + head * x->k_at[2];
            const float *v = x->v + row * x->v_at[0] + head * x->v_at[2];
            transpose(all_keys.to - origin, K, k + origin * x->k_at[1], x->k_at[1], across,
                      across_at, all_keys.width);
            for (; at < end; at += STRIP) {
                long count = end - at < STRIP ? end - at : STRIP;
                Span s = span_of(x, at, count, origin);
                for (long h = 0; h < x->group; h++) {
                    float *out = o + (row * x->queries + at) * wide + (head * x->group + h) * V;
                    look(x, at, count, s, q + at * x->q_at[1] + h * x->q_at[2],
                         across + s.from - origin, across_at, p);
                    product(count, V, s.to - s.from, p, s.width, 1, v + s.from * x->v_at[1],
                            x->v_at[1], out, wide, 0);
                }
            }
        }
    }
}

long window_backward_scratch(const Input *x) {
    return (x->k_size + x->v_size) * (up_to(x->keys, LEAST) + LEAST) + 2 * STRIP * most_seen(x);
}

// Gradients of q [rows, queries, H, K], k and v [rows, keys, Hk, *], dense, the latter two zeros.
void window_backward(const Input *x, const float *o_grad, float *dq, float *dk, float *dv,
                     float *scratch, int threads) {
    long K = x->k_size, V = x->v_size, H = x->heads * x->group;
    long dq_at = H * K, dk_at = x->heads * K, dv_at = x->heads * V, wide = H * V;
    long keys_at = up_to(x->keys, LEAST) + LEAST;
#pragma omp parallel num_threads(threads)
    {
        float *across = scratch + omp_get_thread_num() * window_backward_scratch(x);
        float *values = across + K * keys_at, *p = values + V * keys_at;
        float *dp = p + STRIP * most_seen(x);
#pragma omp for schedule(dynamic)
        for (long task = 0; task < x->rows * x->heads; task++) {
            long row = task / x->heads, head = task % x->heads;
            const float *q = x->q + row * x->q_at[0] + head * x->group * x->q_at[2];
            const float *k = x->k + row * x->k_at[0] + head * x->k_at[2];
            const float *v = x->v + row * x->v_at[0] + head * x->v_at[2];
            float *k_grad = dk + row * x->keys * dk_at + head * K;
            float *v_grad = dv + row * x->keys * dv_at + head * V;
            transpose(x->keys, K, k, x->k_at[1], across, keys_at, keys_at);
            transpose(x->keys, V, v, x->v_at[1], values, keys_at, keys_at);
            for (long at = 0; at < x->queries; at += STRIP) {
                long count = x->queries - at < STRIP ? x->queries - at : STRIP;
                Span s = span_of(x, at, count, 0);
                for (long h = 0; h < x->group; h++) {
                    long head_at = head * x->group + h, place = row * x->queries + at;
                    const float *own = q + at * x->q_at[1] + h * x->q_at[2];
                    const float *given = o_grad + place * wide + head_at * V;
                    look(x, at, count, s, own, across + s.from, keys_at, p);
                    product(count, s.width, V, given, wide, 1, values + s.from, keys_at, dp,
                            s.width, 0);
                    product(s.to - s.from, V, count, p, 1, s.width, given, wide,
                            v_grad + s.from * dv_at, dv_at, 1);
                    for (long i = 0; i < count; i++) {  // of the scores, through the softmax
                        vf sum = {};
                        for (long j = i * s.width; j < (i + 1) * s.width; j += VL)
                            sum += load(p + j) * load(dp + j);
                        float mean = total(sum);
                        for (long j = i * s.width; j < (i + 1) * s.width; j += VL)
                            store(dp + j, load(p + j) * (load(dp + j) - mean) * x->scale);
                    }
                    product(count, K, s.to - s.from, dp, s.width, 1, k + s.from * x->k_at[1],
                            x->k_at[1], dq + place * dq_at + head_at * K, dq_at, 0);
                    product(s.to - s.from, K, count, dp, 1, s.width, own, x->q_at[1],
                            k_grad + s.from * dk_at, dk_at, 1);
                }
            }
        }
    }
}
