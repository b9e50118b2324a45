// A few rows times the weights of a linear layer, as fast as the weights can be read.
//
// Memory is read ahead within a page, and rows of weights are shorter than one: a thread that reads
// one after the other waits at every page's end. So each reads at `STREAMS` distant places at once.
#include "matrix.h"

#define STREAMS (VL == 16 ? 8 : 4)
#define MOST 8  // rows at once

typedef struct {
    long rows, inputs, outputs;
    long x_at;       // from row to row of x, in numbers
    const float *x;  // [rows, inputs]
    const float *w;  // [outputs, inputs]
} Input;

// y[r, first + s * apart] for so many rows and streams; the order of a sum depends on neither.
INLINE void dot(const Input *in, float *y, long first, long apart, int rows, int streams) {
    vf sum[MOST][STREAMS];
    long whole = in->inputs - in->inputs % VL;
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int s = 0; s < streams; s++) sum[r][s] = (vf){};
    for (long i = 0; i < whole; i += VL) {
        vf x[MOST];
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) x[r] = load(in->x + r * in->x_at + i);
#pragma GCC unroll 8
        for (int s = 0; s < streams; s++) {
            vf w = load(in->w + (first + s * apart) * in->inputs + i);
#pragma GCC unroll 8
            for (int r = 0; r < rows; r++) sum[r][s] += x[r] * w;
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int s = 0; s < streams; s++) {
            const float *w = in->w + (first + s * apart) * in->inputs, *x = in->x + r * in->x_at;
            float all = total(sum[r][s]);
            for (long i = whole; i < in->inputs; i++) all += x[i] * w[i];
            y[r * in->outputs + first + s * apart] = all;
        }
}

#define SHARE(rows, streams)                                                          \
    static void share##rows(const Input *in, float *y, long from, long to) {          \
        long apart = (to - from) / streams;                                           \
        for (long n = 0; n < apart; n++) dot(in, y, from + n, apart, rows, streams);  \
        for (long n = from + apart * streams; n < to; n++) dot(in, y, n, 0, rows, 1); \
    }
SHARE(1, STREAMS)
SHARE(2, STREAMS)
SHARE(3, (STREAMS / 2))
SHARE(4, (STREAMS / 2))
SHARE(5, (STREAMS / 4))
SHARE(6, (STREAMS / 4))
SHARE(7, (STREAMS / 4))
SHARE(8, (STREAMS / 4))
static void (*const shares[])(const Input *, float *, long, long) = {
    share1, share2, share3, share4, share5, share6, share7, share8};

// y[rows, outputs] = x w^T, for at most MOST rows
static void linear(const Input *in, float *y, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int t = 0; t < threads; t++) {
        long from = in->outputs * t / threads, to = in->outputs * (t + 1) / threads;
        shares[in->rows - 1](in, y, from, to);
    }
}

// The same as an operation of torch, which compiled graphs call without Python. What it needs of
// torch (torch/csrc/inductor/aoti_torch/c/shim.h) `linear_operation_with` is told.
typedef struct Opaque *Tensor;
typedef struct {
    int32_t (*data)(Tensor, void **);
    int32_t (*sizes)(Tensor, int64_t **);
    int32_t (*strides)(Tensor, int64_t **);
    int32_t (*empty)(int64_t axes, const int64_t *sizes, const int64_t *strides, int32_t dtype,
                     int32_t device, int32_t index, Tensor *made);
    int32_t (*release)(Tensor);
    int32_t float32, cpu;
} Torch;
static Torch torch;
void linear_operation_with(const Torch *functions) { torch = *functions; }

// stack: x [rows, inputs] and w [outputs, inputs], which are its own; y in their place
void linear_operation(uint64_t *stack, uint64_t arguments, uint64_t results) {
    Tensor x = (Tensor)stack[0], w = (Tensor)stack[1], y;
    int64_t *x_size, *w_size, *x_stride;
    void *x_data, *w_data, *y_data;
    torch.sizes(x, &x_size), torch.sizes(w, &w_size), torch.strides(x, &x_stride);
    torch.data(x, &x_data), torch.data(w, &w_data);
    int64_t sizes[2] = {x_size[0], w_size[0]}, strides[2] = {w_size[0], 1};
    torch.empty(2, sizes, strides, torch.float32, torch.cpu, 0, &y);
    torch.data(y, &y_data);
    Input in = {x_size[0], x_size[1], w_size[0], x_stride[0], x_data, w_data};
    linear(&in, y_data, omp_get_max_threads());
    torch.release(x), torch.release(w);
    stack[0] = (uint64_t)y;
}
