// Sparse linear layers: y = x W^T + b, and the gradients of x, of the non-zeros of W, and of b.
//
// The batch is the innermost dimension: x is packed into panels of P samples, panel[j][b] = x[b][j], so that a non-zero
// of W is one multiply-add over P contiguous numbers, with the sums of a row in registers. The columns of W come in
// blocks whose part of a panel stays in the cache: pointer[i * blocks + k] is where row i has its first non-zero in block k.
// Source of the idea: Elsen, Dukhan, Gale, Simonyan, "Fast Sparse ConvNets" (2020), https://arxiv.org/abs/1911.09723
#include "vectors.h"
#ifdef _OPENMP
#include <omp.h>
#endif

#ifndef ISA
#define ISA portable
#endif
#define JOIN_(a, b) a##_##b
#define JOIN(a, b) JOIN_(a, b)

namespace {

constexpr int WIDEST = 4 * LANES;  // samples of a panel: four registers, and two sums of a row hide the latency
constexpr int TOGETHER = 8;      // panels that are packed at a time
constexpr int ROWS = 16;         // of a task's output that are kept in the cache until they are written

struct Panel {
  int first, samples, width;
};

// The next panel of what is left: wide ones, then one that is filled to three quarters at least, or of one vector.
Panel next_panel(int first, int left) {
  if (left == 1) return {first, 1, 1};
  int width = 8;
  while (width < WIDEST && left > width) width *= 2;
  if (width > 8 && left < width && width - left > width / 4) width /= 2;
  return {first, left < width ? left : width, width};
}

// What the widths of the panels add up to that are packed together
int width_together(int batch) {
  int most = 0;
  for (int first = 0; first < batch;) {
    int width = 0;
    for (int n = 0; n < TOGETHER && first < batch; n++) {
      Panel p = next_panel(first, batch - first);
      first += p.samples;
      width += p.width;
    }
    if (width > most) most = width;
  }
  return most;
}

template <class T, int P>
struct Shape {
  static constexpr int full = LANES * 4 / int(sizeof(T));
  static constexpr int L = P < full ? P : full;
  static constexpr int U = P / L;
  static constexpr int S = U >= 8 ? 1 : U >= 4 ? 2 : U >= 2 ? 4 : 8;  // sums of a row, to hide the latency
};

// out[b] (+)= sum over k of values[k] * x[column[k]][b]
template <class T, int P>
INLINE void multiply_row(const T* values, const int* column, int begin, int end, const T* x, T* out, bool add) {
  constexpr int L = Shape<T, P>::L, U = Shape<T, P>::U, S = Shape<T, P>::S;
  typedef Vector<T, L> V;
  V sum[S][U];
  V* to = reinterpret_cast<V*>(out);
#pragma GCC unroll 16
  for (int u = 0; u < U; u++) {
    sum[0][u] = add ? to[u] : V{};
#pragma GCC unroll 8
    for (int s = 1; s < S; s++) sum[s][u] = V{};
  }
  int k = begin;
  for (; k + S <= end; k += S)
#pragma GCC unroll 8
    for (int s = 0; s < S; s++) {
      const V* from = reinterpret_cast<const V*>(x + size_t(column[k + s]) * P);
      T value = values[k + s];
#pragma GCC unroll 16
      for (int u = 0; u < U; u++) sum[s][u] += value * from[u];
    }
  if constexpr (S > 1)
    for (; k < end; k++) {
      const V* from = reinterpret_cast<const V*>(x + size_t(column[k]) * P);
#pragma GCC unroll 16
      for (int u = 0; u < U; u++) sum[0][u] += values[k] * from[u];
    }
#pragma GCC unroll 16
  for (int u = 0; u < U; u++) {
#pragma GCC unroll 8
    for (int s = 1; s < S; s++) sum[0][u] += sum[s][u];
    to[u] = sum[0][u];
  }
}

// out[k] (+)= sum over b of x[column[k]][b] * g[b], for Q of L non-zeros, of which `count` are there
template <class T, int P, int Q>
INLINE void dot_group(const int* column, int count, const T* x, const T* g, T* out, bool add) {
  constexpr int L = Shape<T, P>::L, U = Shape<T, P>::U;
  typedef Vector<T, L> V;
  const V* from[Q];
  V sum[L] = {};
  const V* with = reinterpret_cast<const V*>(g);
#pragma GCC unroll 16
  for (int q = 0; q < Q; q++) from[q] = reinterpret_cast<const V*>(x + size_t(column[q < count ? q : 0]) * P);
#pragma GCC unroll 16
  for (int u = 0; u < U; u++)
#pragma GCC unroll 16
    for (int q = 0; q < Q; q++) sum[q] += from[q][u] * with[u];
  V total = sums<V, 1, L>(sum);
  if (count == L) {
    V* to = reinterpret_cast<V*>(out);
    *to = add ? *to + total : total;
  } else {
    for (int q = 0; q < count; q++) out[q] = add ? out[q] + total[q] : total[q];
  }
}

template <class T, int P>
INLINE void dot_row(const int* column, int begin, int end, const T* x, const T* g, T* out, bool add) {
  [[maybe_unused]] constexpr int L = Shape<T, P>::L;
  int k = begin;
  if constexpr (P == 1) {
    for (; k < end; k++) out[k] = add ? out[k] + x[column[k]] * g[0] : x[column[k]] * g[0];
  } else {
    for (; k + L <= end; k += L) dot_group<T, P, L>(column + k, L, x, g, out + k, add);
    if (end - k > L / 2)
      dot_group<T, P, L>(column + k, end - k, x, g, out + k, add);
    else if (k < end)
      dot_group<T, P, L / 2>(column + k, end - k, x, g, out + k, add);
  }
}

struct Rows {  // a matrix by rows, in blocks of columns
  int rows, columns, blocks;
  const int* pointer;
  const int* column;
};

// Eight products of gathered inputs
template <class T>
INLINE Vector<T, 8> gathered(const T* values, const int* c, const T* x) {
  typedef Vector<T, 8> V;
  return *reinterpret_cast<const V*>(values) * V{x[c[0]], x[c[1]], x[c[2]], x[c[3]], x[c[4]], x[c[5]], x[c[6]], x[c[7]]};
}

// One sample. The last eight overlap those before, of which they leave out what was added: rows end at random, and a
// loop over what is left would be guessed wrong in nearly each of them.
template <class T>
INLINE T multiply_one(const T* values, const int* column, int begin, int end, const T* x) {
  typedef Vector<T, 8> V;
  typedef decltype(V{} < V{}) Index;
  if (end - begin < 8) {
    T sum = 0;
    for (int k = begin; k < end; k++) sum += values[k] * x[column[k]];
    return sum;
  }
  int k = begin;
  V sum = {};
  for (; k + 8 <= end; k += 8) sum += gathered(values + k, column + k, x);
  V last = gathered(values + end - 8, column + end - 8, x);
  Index place = {0, 1, 2, 3, 4, 5, 6, 7};
  sum += place >= 8 - (end - k) ? last : V{};
  return ((sum[0] + sum[1]) + (sum[2] + sum[3])) + ((sum[4] + sum[5]) + (sum[6] + sum[7]));
}

// Rows [first, last), one block of columns after the other; not inlined: one copy for all kinds of input
template <class T, int P>
__attribute__((noinline)) void multiply_rows(const Rows& w, int first, int last, const T* values, const T* x, T* out) {
  for (int k = 0; k < w.blocks; k++)
    for (int i = first; i < last; i++) {
      const int* at = w.pointer + size_t(i) * w.blocks + k;
      T* to = out + size_t(i - first) * P;
      if constexpr (P == 1)
        to[0] = multiply_one(values, w.column, at[0], at[1], x) + (k > 0 ? to[0] : T(0));
      else
        multiply_row<T, P>(values, w.column, at[0], at[1], x, to, k > 0);
    }
}

template <class T, int P>
__attribute__((noinline)) void dot_rows(const Rows& w, int first, int last, const T* x, const T* g, T* out, bool add) {
  for (int k = 0; k < w.blocks; k++)
    for (int i = first; i < last; i++) {
      const int* at = w.pointer + size_t(i) * w.blocks + k;
      dot_row<T, P>(w.column, at[0], at[1], x, g + size_t(i) * P, out, add);
    }
}

// function<T, width>(...), for the widths that panels have
#define AT_WIDTH(P, function, ...) \
  case P: function<T, (P < WIDEST ? P : WIDEST)>(__VA_ARGS__); break;
#define BY_WIDTH(function, width, ...)    \
  switch (width) {                        \
    AT_WIDTH(1, function, __VA_ARGS__)    \
    AT_WIDTH(8, function, __VA_ARGS__)    \
    AT_WIDTH(16, function, __VA_ARGS__)   \
    AT_WIDTH(32, function, __VA_ARGS__)   \
    AT_WIDTH(64, function, __VA_ARGS__)   \
  }

template <class T>
struct Packed {  // panels of some samples
  Panel panel[TOGETHER];
  T* data[TOGETHER];
  int count = 0, samples = 0;

  Packed(int first, int end, int features, T* to) {
    for (; count < TOGETHER && first < end; count++) {
      panel[count] = next_panel(first, end - first);
      data[count] = to;
      to += size_t(features) * panel[count].width;
      first += panel[count].samples;
      samples += panel[count].samples;
    }
  }
};

template <class IO, class T>
void pack_all(const IO* x, int features, const Packed<T>& packed) {
  const int chunk = 256, chunks = (features + chunk - 1) / chunk;
#ifdef _OPENMP
#pragma omp for schedule(static)
#endif
  for (int t = 0; t < packed.count * chunks; t++) {
    const Panel& p = packed.panel[t / chunks];
    int j = t % chunks * chunk, end = j + chunk < features ? j + chunk : features;
    pack(x + size_t(p.first) * features, features, p.samples, j, end, packed.data[t / chunks], p.width);
  }
}

// y = x W^T + b for the samples that are packed
template <class IO, class T>
void multiply_all(const Rows& w, const T* values, const Packed<T>& packed, const T* bias, IO* y, int threads) {
  int parts = threads == 1 ? 1 : (8 * threads + packed.count - 1) / packed.count;
  int part = ((w.rows + parts - 1) / parts + ROWS - 1) / ROWS * ROWS;
  parts = (w.rows + part - 1) / part;
  int held = w.blocks == 1 ? ROWS : part;  // several blocks: all rows meet one block before the next
  Scratch<T> scratch(size_t(held) * WIDEST);
#ifdef _OPENMP
#pragma omp for schedule(dynamic, 1)
#endif
  for (int t = 0; t < packed.count * parts; t++) {
    const Panel& p = packed.panel[t / parts];
    const T* x = packed.data[t / parts];
    int first = t % parts * part, last = first + part < w.rows ? first + part : w.rows;
    for (int i0 = first; i0 < last; i0 += held) {
      int i1 = i0 + held < last ? i0 + held : last;
      BY_WIDTH(multiply_rows, p.width, w, i0, i1, values, x, scratch.get())
      unpack(scratch.get(), p.width, i1 - i0, bias ? bias + i0 : nullptr, y + size_t(p.first) * w.rows + i0, w.rows, p.samples);
    }
  }
}

// The gradient of the non-zeros, and of the bias, from the samples that are packed
template <class T>
void dot_all(const Rows& w, const Packed<T>& x, const Packed<T>& g, T* values, T* bias, bool add, int threads) {
  int parts = threads == 1 ? 1 : 8 * threads, part = (w.rows + parts - 1) / parts;
#ifdef _OPENMP
#pragma omp for schedule(dynamic, 1)
#endif
  for (int t = 0; t < parts; t++) {
    int first = t * part, last = first + part < w.rows ? first + part : w.rows;
    for (int n = 0; n < x.count; n++) {
      bool more = add || n > 0;
      int width = x.panel[n].width;
      if (values) BY_WIDTH(dot_rows, width, w, first, last, x.data[n], g.data[n], values, more)
      if (bias)
        for (int i = first; i < last; i++) {
          T sum = 0;
          for (int b = 0; b < width; b++) sum += g.data[n][size_t(i) * width + b];
          bias[i] = more ? bias[i] + sum : sum;
        }
    }
  }
}

template <class IO, class T>
void forward(int threads, int batch, const Rows& w, const T* values, const T* bias, const IO* x, IO* y) {
  int together = width_together(batch);
  Scratch<T> scratch(size_t(together) * w.columns);
#ifdef _OPENMP
#pragma omp parallel num_threads(threads) if (threads > 1)
#endif
  for (int first = 0; first < batch;) {
    Packed<T> packed(first, batch, w.columns, scratch.get());
    pack_all(x, w.columns, packed);
    multiply_all(w, values, packed, bias, y, threads);
    first += packed.samples;
  }
}

// `turned` is W by columns; `order` says where its non-zeros are among the values.
template <class IO, class T>
void backward(int threads, int batch, const Rows& w, const Rows& turned, const int* order, const T* values, const IO* x,
              const IO* g, IO* gx, T* gvalues, T* gbias) {
  int together = width_together(batch);
  int count = w.pointer[size_t(w.rows) * w.blocks];
  Scratch<T> xs(gvalues ? size_t(together) * w.columns : 0), gs(size_t(together) * w.rows), ordered(gx ? count : 0);
#ifdef _OPENMP
#pragma omp parallel num_threads(threads) if (threads > 1)
#endif
  {
    if (gx) {
#ifdef _OPENMP
#pragma omp for schedule(static)
#endif
      for (int k = 0; k < count; k++) ordered.get()[k] = values[order[k]];
    }
    for (int first = 0; first < batch;) {
      Packed<T> px(first, batch, gvalues ? w.columns : 0, xs.get()), pg(first, batch, w.rows, gs.get());
      pack_all(g, w.rows, pg);
      if (gvalues) pack_all(x, w.columns, px);
      if (gvalues || gbias) dot_all(w, px, pg, gvalues, gbias, first > 0, threads);
      if (gx) multiply_all(turned, ordered.get(), pg, static_cast<const T*>(nullptr), gx, threads);
      first += px.samples;
    }
  }
}

}  // namespace

// What Python calls: 0 if it went well, 1 without memory. `kind`: 0 float, 1 double, 2 bfloat16 with float values.
#define PICK(CALL)                                      \
  try {                                                 \
    if (kind == 0) {                                    \
      typedef float IO, T;                              \
      CALL;                                             \
    } else if (kind == 1) {                             \
      typedef double IO, T;                             \
      CALL;                                             \
    } else {                                            \
      typedef bf16 IO;                                  \
      typedef float T;                                  \
      CALL;                                             \
    }                                                   \
    return 0;                                           \
  } catch (const std::bad_alloc&) {                     \
    return 1;                                           \
  }

extern "C" int JOIN(linear_forward, ISA)(int kind, int threads, int batch, int out, int in, int blocks, const int* pointer,
                                         const int* column, const void* values, const void* bias, const void* x, void* y) {
  Rows w{out, in, blocks, pointer, column};
  PICK((forward<IO, T>(threads, batch, w, (const T*)values, (const T*)bias, (const IO*)x, (IO*)y)))
}

extern "C" int JOIN(linear_backward, ISA)(int kind, int threads, int batch, int out, int in, int blocks, int turned_blocks,
                                          const int* pointer, const int* column, const int* turned_pointer,
                                          const int* turned_column, const int* order, const void* values, const void* x,
                                          const void* g, void* gx, void* gvalues, void* gbias) {
  Rows w{out, in, blocks, pointer, column}, turned{in, out, turned_blocks, turned_pointer, turned_column};
  PICK((backward<IO, T>(threads, batch, w, turned, order, (const T*)values, (const IO*)x, (const IO*)g, (IO*)gx,
                        (T*)gvalues, (T*)gbias)))
}
