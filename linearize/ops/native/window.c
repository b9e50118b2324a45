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
    long sinks;  // first keys that are seen behind the window too, at most LEAST
    float scale;
    const int64_t *begins;  // [queries] first key of a query's sequence; NULL = 0. One row then.
    const float *q, *k, *v;  // [rows, tokens, heads, *]; strides: row, token, head
    long q_at[3], k_at[3], v_at[3];
} Input;

typedef struct {  // keys that a strip sees, [from, to), from a multiple of LEAST behind `origin`
    long from, to, width;
    long begin, far, pitch;  // sinks: from which key on, and their columns before the others
} Span;

static long begin_of(const Input *x, long query) { return x->begins ? x->begins[query] : 0; }

static long first_key(const Input *x, long query) {
    long first = query + x->keys - x->queries - x->window + 1, begin = begin_of(x, query);
    return first > begin ? first : begin;
}

// Queries of the strip that begins at `at`: with sinks, of one sequence.
static long strip_of(const Input *x, long at, long end) {
    long count = end - at < STRIP ? end - at : STRIP;
    for (long i = 1; x->sinks && i < count; i++)
        if (begin_of(x, at + i) != begin_of(x, at)) return i;
    return count;
}

static Span span_of(const Input *x, long at, long count, long origin) {
    long from = first_key(x, at);
    for (long i = 1; x->begins && i < count; i++)
        if (first_key(x, at + i) < from) from = first_key(x, at + i);
    from -= (from - origin) % LEAST;
    long to = at + count + x->keys - x->queries;
    long width = up_to(to - from, LEAST), far = x->sinks ? LEAST : 0;
    return (Span){from, to, width, begin_of(x, at), far, far + width};
}

// How many sinks there are, and [size, LEAST] their keys or values, transposed.
static long sinks_of(const Input *x, long begin, long size, const float *from, long at, float *to) {
    long count = x->keys - begin < x->sinks ? x->keys - begin : x->sinks;
    transpose(count, size, from + begin * at, at, to, LEAST, LEAST);
    return count;
}

// p[count, far + width] = softmax of scale q k^T over what each query sees; 0 elsewhere.
static void look(const Input *x, long at, long count, Span s, const float *q, const float *across,
                 long across_at, const float *sinks, float *p) {
    product(count, s.far, x->k_size, q, x->q_at[1], 1, sinks, LEAST, p, s.pitch, 0);
    product(count, s.width, x->k_size, q, x->q_at[1], 1, across, across_at, p + s.far, s.pitch, 0);
    for (long i = 0; i < count; i++) {
        float *row = p + i * s.pitch, *near = row + s.far;
        long first = first_key(x, at + i) - s.from;
        long own = at + i + x->keys - x->queries, end = own + 1 - s.from;
        for (long j = 0; j < s.far; j++)  // those that the window still holds stand among the others
            if (j >= x->sinks || s.begin + j > own - x->window) row[j] = -INFINITY;
        for (long j = 0; j < first; j++) near[j] = -INFINITY;
        for (long j = end; j < s.width; j++) near[j] = -INFINITY;
        vf most = load(row), sum = {};
        for (long j = VL; j < s.pitch; j += VL) {
            vf score = load(row + j);
            most = choose(score > most, score, most);
        }
        float top = greatest(most);
        for (long j = 0; j < s.pitch; j += VL) {
            vf weight = vexp((load(row + j) - top) * x->scale);
            store(row + j, weight);
            sum += weight;
        }
        float share = 1 / total(sum);
        for (long j = 0; j < s.pitch; j += VL) store(row + j, load(row + j) * share);
    }
}

// No strip sees more than its window, itself, the rounding at both ends, and the sinks.
static long most_seen(const Input *x) {
    return up_to(x->window < x->keys ? x->window : x->keys, LEAST) + 4 * LEAST;
}

long window_forward_scratch(const Input *x) {
    return x->k_size * (most_seen(x) + TALL + LEAST) + STRIP * most_seen(x);
}

// o [rows, queries, H, V] dense.
void window_forward(const Input *x, float *o, float *scratch, int threads) {
    long K = x->k_size, V = x->v_size, wide = x->heads * x->group * V;
    long blocks = (x->queries + TALL - 1) / TALL;
#pragma omp parallel num_threads(threads)
    {
        long across_at = most_seen(x) + TALL;
        float *across = scratch + omp_get_thread_num() * window_forward_scratch(x);
        float *sinks = across + K * across_at, *p = sinks + K * LEAST;
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
            long held = -1, far = 0, count;
            for (; at < end; at += count) {
                count = strip_of(x, at, end);
                Span s = span_of(x, at, count, origin);
                if (x->sinks && s.begin != held) {
                    held = s.begin;
                    far = sinks_of(x, held, K, k, x->k_at[1], sinks);
                }
                for (long h = 0; h < x->group; h++) {
                    float *out = o + (row * x->queries + at) * wide + (head * x->group + h) * V;
                    look(x, at, count, s, q + at * x->q_at[1] + h * x->q_at[2],
                         across + s.from - origin, across_at, sinks, p);
                    product(count, V, s.to - s.from, p + s.far, s.pitch, 1,
                            v + s.from * x->v_at[1], x->v_at[1], out, wide, 0);
                    if (far)
                        product(count, V, far, p, s.pitch, 1, v + held * x->v_at[1], x->v_at[1],
                                out, wide, 1);
                }
            }
        }
    }
}

// dp becomes the scores' gradient.
static void through_softmax(long count, long pitch, const float *p, float *dp, float scale) {
    for (long i = 0; i < count * pitch; i += pitch) {
        vf sum = {};
        for (long j = i; j < i + pitch; j += VL) sum += load(p + j) * load(dp + j);
        float mean = total(sum);
        for (long j = i; j < i + pitch; j += VL)
            store(dp + j, load(p + j) * (load(dp + j) - mean) * scale);
    }
}

// What a strip gives its own queries, and the `seen` keys and values that p and dp are about.
static void back(const Input *x, long count, long seen, long pitch, const float *p, const float *dp,
                 const float *q, const float *given, long given_at, const float *k, float *dq,
                 float *dk, float *dv, int add) {
    long K = x->k_size, V = x->v_size, dk_at = x->heads * K, dv_at = x->heads * V;
    product(count, K, seen, dp, pitch, 1, k, x->k_at[1], dq, x->group * dk_at, add);
    product(seen, K, count, dp, 1, pitch, q, x->q_at[1], dk, dk_at, 1);
    product(seen, V, count, p, 1, pitch, given, given_at, dv, dv_at, 1);
}

long window_backward_scratch(const Input *x) {
    return (x->k_size + x->v_size) * (up_to(x->keys, LEAST) + 2 * LEAST) + 2 * STRIP * most_seen(x);
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
        float *values = across + K * keys_at, *sinks = values + V * keys_at;
        float *sink_values = sinks + K * LEAST, *p = sink_values + V * LEAST;
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
            long held = -1, far = 0, count;
            for (long at = 0; at < x->queries; at += count) {
                count = strip_of(x, at, x->queries);
                Span s = span_of(x, at, count, 0);
                if (x->sinks && s.begin != held) {
                    held = s.begin;
                    far = sinks_of(x, held, K, k, x->k_at[1], sinks);
                    sinks_of(x, held, V, v, x->v_at[1], sink_values);
                }
                for (long h = 0; h < x->group; h++) {
                    long head_at = head * x->group + h, place = row * x->queries + at;
                    const float *own = q + at * x->q_at[1] + h * x->q_at[2];
                    const float *given = o_grad + place * wide + head_at * V;
                    look(x, at, count, s, own, across + s.from, keys_at, sinks, p);
                    product(count, s.far, V, given, wide, 1, sink_values, LEAST, dp, s.pitch, 0);
                    product(count, s.width, V, given, wide, 1, values + s.from, keys_at,
                            dp + s.far, s.pitch, 0);
                    through_softmax(count, s.pitch, p, dp, x->scale);
                    float *q_grad = dq + place * dq_at + head_at * K;
                    back(x, count, s.to - s.from, s.pitch, p + s.far, dp + s.far, own, given, wide,
                         k + s.from * x->k_at[1], q_grad, k_grad + s.from * dk_at,
                         v_grad + s.from * dv_at, 0);
                    if (far)
                        back(x, count, far, s.pitch, p, dp, own, given, wide, k + held * x->k_at[1],
                             q_grad, k_grad + held * dk_at, v_grad + held * dv_at, 1);
                }
            }
        }
    }
}
