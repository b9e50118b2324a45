// Gated linear attention: outputs and the last states.
#include "gla.h"

long gla_forward_scratch(const Input *x) { return work_size(x); }

// o [rows * tokens, H, V] dense; states [sequences, Hk, K, V], moved on in place.
void gla_forward(const Input *x, float *o, float *states, float *scratch, int threads) {
    long K = x->k_size, V = x->v_size, wide = x->heads * x->group * V;
#pragma omp parallel num_threads(threads)
    {
        float *memory = scratch + omp_get_thread_num() * gla_forward_scratch(x);
        Work w = work_in(&memory, x);
#pragma omp for schedule(dynamic)
        for (long task = 0; task < x->sequences * x->heads; task++) {
            Part p = part_of(x, task);
            float *state = states + task * K * V;
            for (long at = 0, n; at < p.tokens; at += n) {
                n = open_chunk(x, &p, at, w);
                float *out = o + (p.first + at) * wide + p.head * x->group * V;
                const float *v = p.v + at * x->v_at[1];
                if (n == 1) {
                    step(x, &p, at, state);
                    for (long h = 0; h < x->group; h++)
                        product(1, V, K, p.q + at * x->q_at[1] + h * x->q_at[2], 0, 1, state, V,
                                out + h * V, 0, 0);
                    continue;
                }
                scale_keys(x, &p, at, n, w);
                scale_rows(K, V, state, w.middle, w.state);
                for (long h = 0; h < x->group; h++) {
                    scale_queries(x, &p, at, n, h, w);
                    for (long first = 0; first < n; first += ROWS_AT_ONCE) {
                        long rows = n - first < ROWS_AT_ONCE ? n - first : ROWS_AT_ONCE;
                        float *own = out + first * wide + h * V;
                        score(K, first, rows, w.queries, w.across, w.scores);
                        product(rows, V, K, w.queries + first * K, K, 1, w.state, V, own, wide, 0);
                        product(rows, V, first + rows, w.scores, CHUNK, 1, v, x->v_at[1], own, wide,
                                1);
                    }
                }
                move_on(x, &p, at, n, w, state);
            }
        }
    }
}
