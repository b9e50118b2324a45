// Small matrix products and exponentials on vectors of the machine's width, single precision.
//
// Matrices are row-major with a stride per row; what is read as the left factor may have any two
// strides, so that a transpose costs nothing there. Columns of products come in whole vectors.
#pragma once
#include <stdint.h>
#include <string.h>

#ifdef _OPENMP
#include <omp.h>
#else
#define omp_get_thread_num() 0
#define omp_get_max_threads() 1
#endif

#if defined(__AVX512F__)
#define VL 16
#define MAX_NV 4  // vectors of a tile; 6 x 4 sums and what they read fit 32 registers
#elif defined(__AVX__)
#define VL 8
#define MAX_NV 2
#else
#define VL 4
#define MAX_NV 2
#endif
#define LEAST 16  // head sizes are multiples of it: whole vectors on every machine

typedef float vf __attribute__((vector_size(4 * VL), aligned(4), may_alias));
typedef int32_t vi __attribute__((vector_size(4 * VL), aligned(4), may_alias));
#define INLINE static inline __attribute__((always_inline))

INLINE long up_to(long n, long unit) { return (n + unit - 1) / unit * unit; }

// `scratch` memory of every function: a stretch per thread, of as many floats as the function of the
// same name and `_scratch` says.
static inline float *take(float **from, long count) {
    float *own = *from;
    *from += up_to(count, 16);
    return own;
}

INLINE vf load(const float *p) { return *(const vf *)p; }
INLINE void store(float *p, vf x) { *(vf *)p = x; }
INLINE vf all(float x) { return x - (vf){}; }

INLINE vf choose(vi where, vf yes, vf no) { return (vf)((where & (vi)yes) | (~where & (vi)no)); }

// exp(x) within 2 units in the last place for x <= 88; 0 below -87, NaN for NaN.
// Range reduction by powers of two and a polynomial (Cephes, Moshier 1992, expf).
INLINE vf vexp(vf x) {
    vi tiny = x < all(-87.0f);
    vf held = choose(tiny, all(-87.0f), x);
    vf shifted = held * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: rounds to the nearest integer
    vf n = shifted - 12582912.0f;
    vf r = held - n * 0.693359375f + n * 2.12194440e-4f;
    vf p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    vf scaled = (vf)((vi)p + (((vi)shifted - 0x4B400000) << 23));
    return choose(tiny, (vf){}, scaled);
}

// In halves: the sum of one number after the other waits for each.
INLINE float total(vf x) {
    float all[VL];
    store(all, x);
    for (int n = VL / 2; n; n /= 2)
        for (int i = 0; i < n; i++) all[i] += all[i + n];
    return all[0];
}

INLINE float greatest(vf x) {
    float all[VL];
    store(all, x);
    for (int n = VL / 2; n; n /= 2)
        for (int i = 0; i < n; i++) all[i] = all[i + n] > all[i] ? all[i + n] : all[i];
    return all[0];
}

// c[mr, nv vectors] = a b, or += a b
INLINE void tile(long depth, const float *a, long ar, long ac, const float *b, long br, float *c,
                 long cr, int add, int mr, int nv) {
    vf sum[8][4];
#pragma GCC unroll 8
    for (int i = 0; i < mr; i++)
#pragma GCC unroll 4
        for (int j = 0; j < nv; j++) sum[i][j] = add ? load(c + i * cr + j * VL) : (vf){};
    for (long k = 0; k < depth; k++) {
        vf row[4];
#pragma GCC unroll 4
        for (int j = 0; j < nv; j++) row[j] = load(b + k * br + j * VL);
#pragma GCC unroll 8
        for (int i = 0; i < mr; i++) {
            vf left = all(a[i * ar + k * ac]);
#pragma GCC unroll 4
            for (int j = 0; j < nv; j++) sum[i][j] += left * row[j];
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < mr; i++)
#pragma GCC unroll 4
        for (int j = 0; j < nv; j++) store(c + i * cr + j * VL, sum[i][j]);
}

#define ROWS(most, nv)                                                            \
    for (; m + most <= rows; m += most)                                           \
        tile(depth, a + m * ar, ar, ac, b, br, c + m * cr, cr, add, most, nv);

#define COLUMNS(nv)                                                               \
    static __attribute__((noinline)) void columns##nv(                            \
        long rows, long depth, const float *a, long ar, long ac, const float *b,  \
        long br, float *c, long cr, int add) {                                    \
        long m = 0;                                                               \
        if (nv < 4) ROWS(8, nv)                                                   \
        ROWS(6, nv) ROWS(4, nv) ROWS(2, nv) ROWS(1, nv)                           \
    }
COLUMNS(1)
COLUMNS(2)
#if MAX_NV == 4
COLUMNS(3)
COLUMNS(4)
#endif

// c[rows, columns] = a[rows, depth] b[depth, columns], or += where add; columns a multiple of VL.
static inline void product(long rows, long columns, long depth, const float *a, long ar, long ac,
                    const float *b, long br, float *c, long cr, int add) {
    for (long left = columns / VL; left > 0;) {
        int nv = left < MAX_NV ? left : left == MAX_NV + 1 && MAX_NV > 2 ? 3 : MAX_NV;
        switch (nv) {
            case 1: columns1(rows, depth, a, ar, ac, b, br, c, cr, add); break;
            case 2: columns2(rows, depth, a, ar, ac, b, br, c, cr, add); break;
#if MAX_NV == 4
            case 3: columns3(rows, depth, a, ar, ac, b, br, c, cr, add); break;
            default: columns4(rows, depth, a, ar, ac, b, br, c, cr, add);
#endif
        }
        left -= nv, b += nv * VL, c += nv * VL;
    }
}

// to[columns, count] from from[count, columns]; rows of `to` are `tr` apart, filled with 0 up to
// `width`.
static inline void transpose(long count, long columns, const float *from, long fr, float *to, long tr,
                      long width) {
    long i = 0;
    for (; i + 4 <= count; i += 4) {
        const float *a = from + i * fr, *b = a + fr, *c = b + fr, *d = c + fr;
        for (long k = 0; k < columns; k++) {
            float *row = to + k * tr + i;
            row[0] = a[k], row[1] = b[k], row[2] = c[k], row[3] = d[k];
        }
    }
    for (; i < count; i++)
        for (long k = 0; k < columns; k++) to[k * tr + i] = from[i * fr + k];
    for (; i < width; i++)
        for (long k = 0; k < columns; k++) to[k * tr + i] = 0;
}
