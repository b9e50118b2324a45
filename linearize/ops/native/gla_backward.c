// Gated linear attention: the gradients of all inputs.
#include <stddef.h>
#include "gla.h"

typedef struct {  // gradients, dense and in the shapes of the inputs
    const float *o;
    float *q, *k, *v, *g, *states;  // states: of the last ones, made those of the first ones
} Gradients;

typedef struct {  // of one chunk, backward
    float *values, *d_state, *d_across, *d_keys, *d_values, *d_queries, *d_scores, *sums;
} Back;

static Back back_in(float **memory, const Input *x) {
    long K = x->k_size, V = x->v_size;
    return (Back){take(memory, V * CHUNK), take(memory, K * V),     take(memory, K * V),
                  take(memory, CHUNK * K), take(memory, CHUNK * V), take(memory, CHUNK * K),
                  take(memory, CHUNK * CHUNK), take(memory, K)};
}

static long back_size(const Input *x) {
    return 2 * CHUNK * x->v_size + 2 * x->k_size * x->v_size + 2 * CHUNK * x->k_size +
           CHUNK * CHUNK + up_to(x->k_size, 16);
}

// g's gradients of tokens [at, at + n): sums of q dq - k dk over all later tokens, on top of
// b.sums. dq and dk are those of this head, [n, group or 1, K] with strides dq_at, dk_at.
static void gate_gradients(const Input *x, const Part *p, long at, long n, const Gradients *d,
                           long dq_at, long dk_at, long dg_at, float *sums) {
    long K = x->k_size;
    const float *dq = d->q + (p->first + at) * dq_at + p->head * x->group * K;
    const float *dk = d->k + (p->first + at) * dk_at + p->head * K;
    float *dg = d->g + (p->first + at) * dg_at + p->head * x->gates;
    for (long i = n - 1; i >= 0; i--) {
        vf whole = {};
        for (long k = 0; k < K; k += VL) {
            vf sum = load(sums + k) -
                     load(p->k + (at + i) * x->k_at[1] + k) * load(dk + i * dk_at + k);
            for (long h = 0; h < x->group; h++)
                sum += load(p->q + (at + i) * x->q_at[1] + h * x->q_at[2] + k) *
                       load(dq + i * dq_at + h * K + k);
            store(sums + k, sum);
            whole += sum;
            if (x->gates > 1) store(dg + i * dg_at + k, sum);
        }
        if (x->gates == 1) dg[i * dg_at] = total(whole);
    }
}

// One token backward: `state` the one before it, b.d_state the gradient of the one behind it.
static void step_back(const Input *x, const Part *p, long at, float *state, const float *d_out,
                      float *dq, float *dk, float *dv, Back b) {
    long K = x->k_size, V = x->v_size;
    const float *v = p->v + at * x->v_at[1], *key = p->k + at * x->k_at[1];
    step(x, p, at, state);
    memset(dv, 0, 4 * V);
    for (long k = 0; k < K; k++) {
        float *row = state + k * V, *d_row = b.d_state + k * V;
        for (long h = 0; h < x->group; h++) {
            float q = p->q[at * x->q_at[1] + h * x->q_at[2] + k];
            vf sum = {};
            for (long j = 0; j < V; j += VL) {
                vf given = load(d_out + h * V + j);
                sum += load(row + j) * given;
                store(d_row + j, load(d_row + j) + given * q);
            }
            dq[h * K + k] = total(sum);
        }
        float keep = expf(gate_at(x, p, at, k));
        vf sum = {};
        for (long j = 0; j < V; j += VL) {
            vf given = load(d_row + j);
            sum += given * load(v + j);
            store(dv + j, load(dv + j) + given * key[k]);
            store(d_row + j, given * keep);
        }
        dk[k] = total(sum);
    }
}

static void chunk_back(const Input *x, const Part *p, long at, long n, const float *d_out,
                       long wide, float *dq, long dq_at, Work w, Back b) {
    long K = x->k_size, V = x->v_size, width = up_to(n, LEAST);
    const float *v = p->v + at * x->v_at[1];
    transpose(n, V, v, x->v_at[1], b.values, CHUNK, width);
    scale_rows(K, V, b.d_state, w.middle, b.d_state);  // of exp(m) state + keys^T v
    transpose(K, V, b.d_state, V, b.d_across, K, K);
    product(n, V, K, w.keys, K, 1, b.d_state, V, b.d_values, V, 0);
    product(n, K, V, v, x->v_at[1], 1, b.d_across, K, b.d_keys, K, 0);
    transpose(K, V, w.state, V, b.d_across, K, K);  // from here on the state's transpose
    for (long h = 0; h < x->group; h++) {
        scale_queries(x, p, at, n, h, w);
        const float *given = d_out + h * V;
        for (long first = 0; first < n; first += ROWS_AT_ONCE) {
            long rows = n - first < ROWS_AT_ONCE ? n - first : ROWS_AT_ONCE, end = first + rows;
            const float *left = w.queries + first * K, *own = given + first * wide;
            score(K, first, rows, w.queries, w.across, w.scores);
            product(rows, up_to(end, LEAST), V, own, wide, 1, b.values, CHUNK, b.d_scores, CHUNK,
                    0);
            for (long i = 0; i < rows; i++)
                for (long j = first + i + 1; j < end; j++) b.d_scores[i * CHUNK + j] = 0;
            product(end, V, rows, w.scores, 1, CHUNK, own, wide, b.d_values, V, 1);
            product(end, K, rows, b.d_scores, 1, CHUNK, left, K, b.d_keys, K, 1);
            product(rows, K, end, b.d_scores, CHUNK, 1, w.keys, K, b.d_queries + first * K, K, 0);
            product(rows, K, V, own, wide, 1, b.d_across, K, b.d_queries + first * K, K, 1);
        }
        product(K, V, n, w.queries, 1, K, given, wide, b.d_state, V, 1);
        for (long i = 0; i < n; i++)
            for (long k = 0; k < K; k += VL)
                store(dq + i * dq_at + h * K + k,
                      load(b.d_queries + i * K + k) * load(w.up + i * K + k));
    }
    scale_rows(K, V, b.d_state, w.middle, b.d_state);
}

static long longest(const Input *x) {
    long most = x->length;
    for (long s = 0; x->bounds && s < x->sequences; s++)
        if (x->bounds[s + 1] - x->bounds[s] > most) most = x->bounds[s + 1] - x->bounds[s];
    return most;
}

// Moves on over the chunks of [from, to). Where `begins` is given it takes them down there, and the
// states between them in `states`, whose first is the one before; else it moves that one on.
static long go_over(const Input *x, const Part *p, long from, long to, Work w, float *states,
                    long *begins) {
    long size = x->k_size * x->v_size, count = 0;
    for (long at = from, n; at < to; at += n, count++) {
        float *state = states + (begins ? count * size : 0), *next = state + (begins ? size : 0);
        n = open_chunk(x, p, at, w);
        if (begins) begins[count] = at;
        if (n == 1) {
            if (begins) memcpy(next, state, 4 * size);
            step(x, p, at, next);
        } else {
            scale_keys(x, p, at, n, w);
            scale_rows(x->k_size, x->v_size, state, w.middle, w.state);
            move_on(x, p, at, n, w, next);
        }
    }
    if (begins) begins[count] = to;
    return count;
}

// States are kept at multiples of CHUNK tokens, and found again between them.
long gla_backward_scratch(const Input *x) {
    return work_size(x) + back_size(x) +
           (longest(x) / CHUNK + 1 + CHUNK + 1) * x->k_size * x->v_size;
}

// Gradients from the inputs, the first states, and gradients of outputs and last states.
void gla_backward(const Input *x, const float *states, const Gradients *d, float *scratch,
                  int threads) {
    long K = x->k_size, V = x->v_size, H = x->heads * x->group, size = K * V;
    long dq_at = H * K, dk_at = x->heads * K, dv_at = x->heads * V, dg_at = x->heads * x->gates;
#pragma omp parallel num_threads(threads)
    {
        float *memory = scratch + omp_get_thread_num() * gla_backward_scratch(x);
        Work w = work_in(&memory, x);
        Back b = back_in(&memory, x);
        float *kept = memory, *between = kept + (longest(x) / CHUNK + 1) * size;
        long begins[CHUNK + 1];
#pragma omp for schedule(dynamic)
        for (long task = 0; task < x->sequences * x->heads; task++) {
            Part p = part_of(x, task);
            long block = 0;
            memcpy(kept, states + task * size, 4 * size);
            for (long at = 0; at + CHUNK <= p.tokens; at += CHUNK, block++) {
                memcpy(kept + (block + 1) * size, kept + block * size, 4 * size);
                go_over(x, &p, at, at + CHUNK, w, kept + (block + 1) * size, NULL);
            }
            memcpy(b.d_state, d->states + task * size, 4 * size);
            memset(b.sums, 0, 4 * K);
            for (int last = 1; block >= 0; block--, last = 0) {
                long end = (block + 1) * CHUNK < p.tokens ? (block + 1) * CHUNK : p.tokens;
                memcpy(between, kept + block * size, 4 * size);
                long count = go_over(x, &p, block * CHUNK, end, w, between, begins);
                for (long k = 0; last && k < K; k++) {
                    const float *state = between + count * size + k * V;
                    vf sum = {};
                    for (long j = 0; j < V; j += VL)
                        sum += load(state + j) * load(b.d_state + k * V + j);
                    b.sums[k] = total(sum);
                }
                while (count-- > 0) {
                    long at = begins[count], n = begins[count + 1] - at, row = p.first + at;
                    float *state = between + count * size;
                    float *dq = d->q + row * dq_at + p.head * x->group * K;
                    float *dk = d->k + row * dk_at + p.head * K;
                    float *dv = d->v + row * dv_at + p.head * V;
                    const float *d_out = d->o + row * H * V + p.head * x->group * V;
                    if (n == 1) {
                        step_back(x, &p, at, state, d_out, dq, dk, dv, b);
                    } else {
                        open_chunk(x, &p, at, w);
                        scale_keys(x, &p, at, n, w);
                        scale_rows(K, V, state, w.middle, w.state);
                        chunk_back(x, &p, at, n, d_out, H * V, dq, dq_at, w, b);
                        for (long i = 0; i < n; i++) {
                            memcpy(dv + i * dv_at, b.d_values + i * V, 4 * V);
                            for (long k = 0; k < K; k += VL)
                                store(dk + i * dk_at + k, load(b.d_keys + i * K + k) /
                                                              load(w.up + i * K + k));
                        }
                    }
                    gate_gradients(x, &p, at, n, d, dq_at, dk_at, dg_at, b.sums);
                }
            }
            memcpy(d->states + task * size, b.d_state, 4 * size);
        }
    }
}
