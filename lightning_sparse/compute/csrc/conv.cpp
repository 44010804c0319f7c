// Sparse convolutions: y = conv2d(x, W) + b, and the gradients of x, of the non-zeros of W, and of b.
//
// P samples are the innermost dimension, and planes are padded with zeros: plane[c][h][w][b]. A non-zero of W is then one
// multiply-add over the contiguous numbers of several neighbouring outputs, at a fixed distance: its offset.
// The gradient of x is the same sum over the planes of the output's gradient; with a stride, one for each class of
// inputs that see the same taps of the kernel.
#include <vector>

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

constexpr int P = LANES;              // samples side by side
constexpr int CACHED = 320 * 1024;    // bytes of planes that the gradient of the non-zeros walks over at a time

struct Axis {  // of an image: rows or columns
  int in, out, kernel, stride, pad;

  int padded() const {  // what the outputs reach
    int reach = (out - 1) * stride + kernel;
    return reach > in + pad ? reach : in + pad;
  }
};

// How the gradient of the output lies for the gradient of the input: output m of class a (input a + stride m - pad)
// sees outputs m - j for the taps a + stride j.
struct Turned {
  int lead, size;

  explicit Turned(const Axis& a) : lead((a.kernel - 1) / a.stride), size(0) {
    int last = (a.in - 1 + a.pad) / a.stride;
    size = lead + (last > a.out - 1 ? last : a.out - 1) + 1;
  }
};

template <class T>
struct Terms {  // non-zeros by output plane, with where they read
  std::vector<int> pointer, offset;
  std::vector<T> value;
};

// out[t][b] = start + sum over k of value[k] * x[offset[k] + t * step + b], for N neighbours
template <class T, int N>
INLINE void neighbours(const T* value, const int* offset, int begin, int end, const T* x, size_t step, T start, T* out) {
  constexpr int S = N >= 8 ? 1 : N >= 4 ? 2 : 4;
  typedef Vector<T, P> V;
  V sum[S][N];
#pragma GCC unroll 8
  for (int s = 0; s < S; s++)
#pragma GCC unroll 8
    for (int n = 0; n < N; n++) sum[s][n] = s ? V{} : V{} + start;
  int k = begin;
  for (; k + S <= end; k += S)
#pragma GCC unroll 4
    for (int s = 0; s < S; s++) {
      const T* from = x + offset[k + s];
      T v = value[k + s];
#pragma GCC unroll 8
      for (int n = 0; n < N; n++) sum[s][n] += v * *reinterpret_cast<const V*>(from + n * step);
    }
  for (; k < end; k++)
#pragma GCC unroll 8
    for (int n = 0; n < N; n++) sum[0][n] += value[k] * *reinterpret_cast<const V*>(x + offset[k] + n * step);
#pragma GCC unroll 8
  for (int n = 0; n < N; n++) {
#pragma GCC unroll 4
    for (int s = 1; s < S; s++) sum[0][n] += sum[s][n];
    *reinterpret_cast<V*>(out + size_t(n) * P) = sum[0][n];
  }
}

// One row of all output planes, `width` neighbours of each; tiles first, so that what they read stays in the cache
template <class T>
__attribute__((noinline)) void row(const Terms<T>& w, int planes, const T* bias, const T* x, size_t step, int width, T* out) {
  for (int t = 0; t < width;) {
    int left = width - t, n = left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
    for (int o = 0; o < planes; o++) {
      T start = bias ? bias[o] : T(0);
      T* to = out + (size_t(o) * width + t) * P;
      const T* from = x + t * step;
      int begin = w.pointer[o], end = w.pointer[o + 1];
      if (n == 8) neighbours<T, 8>(w.value.data(), w.offset.data(), begin, end, from, step, start, to);
      else if (n == 4) neighbours<T, 4>(w.value.data(), w.offset.data(), begin, end, from, step, start, to);
      else if (n == 2) neighbours<T, 2>(w.value.data(), w.offset.data(), begin, end, from, step, start, to);
      else neighbours<T, 1>(w.value.data(), w.offset.data(), begin, end, from, step, start, to);
    }
    t += n;
  }
}

// out[q] += sum over rows, neighbours and samples of x[offset[q] + ...] * g[...], for Q non-zeros of one output plane
template <class T, int Q>
INLINE void dots(const int* offset, int count, const T* x, const T* g, int rows, int width, size_t step, size_t x_row,
                 size_t g_row, T* out) {
  typedef Vector<T, P> V;
  V sum[P] = {};
  const T* from[Q];
#pragma GCC unroll 16
  for (int q = 0; q < Q; q++) from[q] = x + offset[q < count ? q : 0];
  for (int r = 0; r < rows; r++)
    for (int t = 0; t < width; t++) {
      V with = *reinterpret_cast<const V*>(g + r * g_row + size_t(t) * P);
      size_t at = r * x_row + t * step;
#pragma GCC unroll 16
      for (int q = 0; q < Q; q++) sum[q] += *reinterpret_cast<const V*>(from[q] + at) * with;
    }
  V total = sums<V, 1, P>(sum);
  for (int q = 0; q < count; q++) out[q] += total[q];
}

template <class T>
__attribute__((noinline)) void dots_of_plane(const int* offset, int begin, int end, const T* x, const T* g, int rows, int width,
                                             size_t step, size_t x_row, size_t g_row, T* out) {
  int k = begin;
  for (; k < end; k += P) {
    int count = end - k < P ? end - k : P;
    if (count > P / 2) dots<T, P>(offset + k, count, x, g, rows, width, step, x_row, g_row, out + k);
    else dots<T, P / 2>(offset + k, count, x, g, rows, width, step, x_row, g_row, out + k);
  }
}

struct Conv {
  int planes_in, planes_out;
  Axis h, w;

  int taps() const { return h.kernel * w.kernel; }
};

template <class T>
INLINE void zero(T* from, T* to) {
  for (; from < to; from++) *from = T(0);
}

// Samples [first, first + P) of NCHW images into padded planes; what is not there is zero
template <class IO, class T>
void pack_planes(const IO* x, int planes, int height, int width, int first, int batch, int top, int left, int rows, int columns,
                 T* to) {
  int samples = batch - first < P ? batch - first : P;
  size_t image = size_t(planes) * height * width;
#ifdef _OPENMP
#pragma omp for schedule(static)
#endif
  for (int c = 0; c < planes; c++) {
    T* plane = to + size_t(c) * rows * columns * P;
    int wide = width < columns - left ? width : columns - left, high = height < rows - top ? height : rows - top;
    zero(plane, plane + size_t(top) * columns * P);
    for (int i = top; i < top + high; i++) {
      T* row = plane + size_t(i) * columns * P;
      zero(row, row + left * P);
      pack(x + first * image + (size_t(c) * height + i - top) * width, image, samples, 0, wide, row + left * P, P);
      zero(row + size_t(left + wide) * P, row + size_t(columns) * P);
    }
    zero(plane + size_t(top + high) * columns * P, plane + size_t(rows) * columns * P);
  }
}

// Where each non-zero reads in padded planes. The usual kernels are constants: a division costs as much as its products.
template <int TAPS>
void offsets_of(const Conv& conv, const int* column, int count, int samples, int* to) {
  int columns = conv.w.padded(), plane = conv.h.padded() * columns, taps = TAPS ? TAPS : conv.taps();
  std::vector<int> within(taps);
  for (int tap = 0; tap < taps; tap++) within[tap] = (tap / conv.w.kernel * columns + tap % conv.w.kernel) * samples;
  for (int k = 0; k < count; k++) {
    int c = column[k] / (TAPS ? TAPS : taps);
    to[k] = c * plane * samples + within[column[k] - c * taps];
  }
}

std::vector<int> offsets(const Conv& conv, const int* column, int count, int samples) {
  std::vector<int> found(count);
  if (conv.taps() == 9) offsets_of<9>(conv, column, count, samples, found.data());
  else if (conv.taps() == 1) offsets_of<1>(conv, column, count, samples, found.data());
  else offsets_of<0>(conv, column, count, samples, found.data());
  return found;
}

template <class T>
Terms<T> terms(const Conv& conv, const int* pointer, const int* column, const T* values, int samples) {
  int count = pointer[conv.planes_out];
  Terms<T> w;
  w.pointer.assign(pointer, pointer + conv.planes_out + 1);
  w.value.assign(values, values + count);
  w.offset = offsets(conv, column, count, samples);
  return w;
}

// How many vectors one image takes whose rows, with their padding, are one line; only without strides
int line_width(const Conv& conv) { return ((conv.h.out - 1) * conv.w.padded() + conv.w.out + P - 1) / P; }

bool by_lines(int batch, const Conv& conv) {
  if (conv.h.stride > 1 || conv.w.stride > 1) return false;
  return long(batch) * line_width(conv) < long((batch + P - 1) / P) * conv.h.out * conv.w.out;
}

// Few samples: the lanes of a vector are neighbouring outputs of one image. Those in the padding are computed and left out.
template <class IO, class T>
void forward_lines(int threads, int batch, const Conv& conv, const int* pointer, const int* column, const T* values,
                   const T* bias, const IO* x, IO* y) {
  constexpr int TILE = 8;  // vectors
  int rows = conv.h.padded(), columns = conv.w.padded(), width = line_width(conv), tiles = (width + TILE - 1) / TILE;
  Terms<T> w = terms(conv, pointer, column, values, 1);
  size_t plane = size_t(rows) * columns, all = plane * conv.planes_in, area = size_t(conv.h.in) * conv.w.in;
  int wide = conv.w.in < columns - conv.w.pad ? conv.w.in : columns - conv.w.pad;
  int high = conv.h.in < rows - conv.h.pad ? conv.h.in : rows - conv.h.pad;
  Scratch<T> planes(all + P + conv.w.kernel);  // the last vector of the last plane reads on
  for (T* to = planes.get(); to < planes.get() + all + P + conv.w.kernel; to++) *to = T(0);
#ifdef _OPENMP
#pragma omp parallel num_threads(threads) if (threads > 1)
#endif
  {
    Scratch<T> out(size_t(conv.planes_out) * TILE * P);
    for (int b = 0; b < batch; b++) {
#ifdef _OPENMP
#pragma omp for schedule(static)
#endif
      for (int c = 0; c < conv.planes_in; c++)
        for (int i = 0; i < high; i++) {
          const IO* from = x + (size_t(b) * conv.planes_in + c) * area + size_t(i) * conv.w.in;
          T* to = planes.get() + c * plane + size_t(i + conv.h.pad) * columns + conv.w.pad;
          for (int j = 0; j < wide; j++) to[j] = to_real(from[j]);
        }
#ifdef _OPENMP
#pragma omp for schedule(dynamic, 1)
#endif
      for (int t = 0; t < tiles; t++) {
        int n = width - t * TILE < TILE ? width - t * TILE : TILE, first = t * TILE * P, end = first + n * P;
        row(w, conv.planes_out, bias, planes.get() + first, P, n, out.get());
        for (int o = 0; o < conv.planes_out; o++)
          for (int i = first / columns; i < conv.h.out && i * columns < end; i++) {
            int start = i * columns, j0 = first > start ? first - start : 0, j1 = end - start < conv.w.out ? end - start : conv.w.out;
            const T* from = out.get() + size_t(o) * n * P + start - first;
            IO* to = y + ((size_t(b) * conv.planes_out + o) * conv.h.out + i) * conv.w.out;
            for (int j = j0; j < j1; j++) from_real(from[j], to + j);
          }
      }
    }
  }
}

template <class IO, class T>
void forward(int threads, int batch, const Conv& conv, const int* pointer, const int* column, const T* values, const T* bias,
             const IO* x, IO* y) {
  if (by_lines(batch, conv)) return forward_lines(threads, batch, conv, pointer, column, values, bias, x, y);
  int rows = conv.h.padded(), columns = conv.w.padded();
  Terms<T> w = terms(conv, pointer, column, values, P);
  Scratch<T> planes(size_t(conv.planes_in) * rows * columns * P);
  size_t image = size_t(conv.planes_out) * conv.h.out * conv.w.out;
#ifdef _OPENMP
#pragma omp parallel num_threads(threads) if (threads > 1)
#endif
  {
    Scratch<T> out(size_t(conv.planes_out) * conv.w.out * P);
    for (int first = 0; first < batch; first += P) {
      int samples = batch - first < P ? batch - first : P;
      pack_planes(x, conv.planes_in, conv.h.in, conv.w.in, first, batch, conv.h.pad, conv.w.pad, rows, columns, planes.get());
#ifdef _OPENMP
#pragma omp for schedule(dynamic, 1)
#endif
      for (int i = 0; i < conv.h.out; i++) {
        const T* from = planes.get() + size_t(i) * conv.h.stride * columns * P;
        row(w, conv.planes_out, bias, from, size_t(conv.w.stride) * P, conv.w.out, out.get());
        for (int o = 0; o < conv.planes_out; o++) {
          IO* to = y + first * image + (size_t(o) * conv.h.out + i) * conv.w.out;
          unpack(out.get() + size_t(o) * conv.w.out * P, P, conv.w.out, static_cast<const T*>(nullptr), to, image, samples);
        }
      }
    }
  }
}

// The terms of one class of inputs: taps a + stride j of each axis
template <class T>
Terms<T> class_terms(const Conv& conv, const Turned& th, const Turned& tw, int a, int b, const int* pointer,
                     const int* column, const int* order, const T* values) {
  int taps = conv.taps();
  Terms<T> w;
  w.pointer.push_back(0);
  for (int c = 0; c < conv.planes_in; c++) {
    for (int k = pointer[c]; k < pointer[c + 1]; k++) {
      int o = column[k] / taps, tap = column[k] % taps, i = tap / conv.w.kernel, j = tap % conv.w.kernel;
      if (i % conv.h.stride != a || j % conv.w.stride != b) continue;
      w.offset.push_back(((o * th.size + th.lead - i / conv.h.stride) * tw.size + tw.lead - j / conv.w.stride) * P);
      w.value.push_back(values[order[k]]);
    }
    w.pointer.push_back(int(w.offset.size()));
  }
  return w;
}

// First and last + 1 of the outputs of a class, on one axis
void class_range(const Axis& axis, int a, int* first, int* last) {
  *first = a >= axis.pad ? 0 : (axis.pad - a + axis.stride - 1) / axis.stride;
  *last = axis.in - 1 + axis.pad < a ? 0 : (axis.in - 1 + axis.pad - a) / axis.stride + 1;
}

template <class IO, class T>
void gradient_of_input(const Conv& conv, const Turned& tw, const std::vector<Terms<T>>& classes, const T* g,
                       int first, int batch, IO* gx) {
  int samples = batch - first < P ? batch - first : P;
  size_t image = size_t(conv.planes_in) * conv.h.in * conv.w.in;
  Scratch<T> out(size_t(conv.planes_in) * (conv.w.in / conv.w.stride + 1) * P);
#ifdef _OPENMP
#pragma omp for schedule(dynamic, 1)
#endif
  for (int i = 0; i < conv.h.in; i++) {
    int a = (i + conv.h.pad) % conv.h.stride, m = (i + conv.h.pad) / conv.h.stride;
    for (int b = 0; b < conv.w.stride; b++) {
      int n0, n1;
      class_range(conv.w, b, &n0, &n1);
      if (n1 <= n0) continue;
      const T* from = g + (size_t(m) * tw.size + n0) * P;
      row(classes[a * conv.w.stride + b], conv.planes_in, static_cast<const T*>(nullptr), from, P, n1 - n0, out.get());
      int j = b + conv.w.stride * n0 - conv.w.pad;
      for (int c = 0; c < conv.planes_in; c++) {
        const T* row_of = out.get() + size_t(c) * (n1 - n0) * P;
        IO* to = gx + first * image + (size_t(c) * conv.h.in + i) * conv.w.in + j;
        if (conv.w.stride == 1) {
          unpack(row_of, P, n1 - n0, static_cast<const T*>(nullptr), to, image, samples);
        } else {
          for (int s = 0; s < samples; s++)
            for (int n = 0; n < n1 - n0; n++) from_real(row_of[size_t(n) * P + s], to + s * image + size_t(n) * conv.w.stride);
        }
      }
    }
  }
}

template <class T>
void gradient_of_values(int threads, const Conv& conv, const Turned& th, const Turned& tw, const int* pointer,
                        const int* offset, const T* x, const T* g, T* gvalues, T* gbias) {
  int columns = conv.w.padded();
  size_t x_row = size_t(columns) * P, g_row = size_t(tw.size) * P, plane = size_t(th.size) * g_row;
  const T* start = g + th.lead * g_row + size_t(tw.lead) * P;
  int most = int(CACHED / (sizeof(T) * x_row * conv.planes_in)) - conv.h.kernel + 1;
  int together = most < 1 ? 1 : most > conv.h.out ? conv.h.out : most;
  int parts = threads == 1 ? 1 : 4 * threads, part = (conv.planes_out + parts - 1) / parts;
#ifdef _OPENMP
#pragma omp for schedule(dynamic, 1)
#endif
  for (int p = 0; p < parts; p++) {
    int last = (p + 1) * part < conv.planes_out ? (p + 1) * part : conv.planes_out;
    for (int i = 0; i < conv.h.out; i += together) {
      int height = conv.h.out - i < together ? conv.h.out - i : together;
      for (int o = p * part; o < last; o++) {
        const T* go = start + o * plane + i * g_row;
        if (gvalues)
          dots_of_plane(offset, pointer[o], pointer[o + 1], x + size_t(i) * conv.h.stride * x_row, go, height, conv.w.out,
                        size_t(conv.w.stride) * P, conv.h.stride * x_row, g_row, gvalues);
        if (gbias)
          for (int r = 0; r < height; r++)
            for (int t = 0; t < conv.w.out * P; t++) gbias[o] += go[r * g_row + t];
      }
    }
  }
}

template <class IO, class T>
void backward(int threads, int batch, const Conv& conv, const int* pointer, const int* column, const int* turned_pointer,
              const int* turned_column, const int* order, const T* values, const IO* x, const IO* g, IO* gx, T* gvalues, T* gbias) {
  Turned th(conv.h), tw(conv.w);
  int rows = conv.h.padded(), columns = conv.w.padded(), count = pointer[conv.planes_out];
  std::vector<Terms<T>> classes;
  if (gx)
    for (int a = 0; a < conv.h.stride; a++)
      for (int b = 0; b < conv.w.stride; b++)
        classes.push_back(class_terms(conv, th, tw, a, b, turned_pointer, turned_column, order, values));
  std::vector<int> offset = offsets(conv, column, gvalues ? count : 0, P);
  if (gvalues) std::memset(static_cast<void*>(gvalues), 0, sizeof(T) * count);
  if (gbias) std::memset(static_cast<void*>(gbias), 0, sizeof(T) * conv.planes_out);
  Scratch<T> xs(gvalues ? size_t(conv.planes_in) * rows * columns * P : 0), gs(size_t(conv.planes_out) * th.size * tw.size * P);
#ifdef _OPENMP
#pragma omp parallel num_threads(threads) if (threads > 1)
#endif
  for (int first = 0; first < batch; first += P) {
    pack_planes(g, conv.planes_out, conv.h.out, conv.w.out, first, batch, th.lead, tw.lead, th.size, tw.size, gs.get());
    if (gvalues)
      pack_planes(x, conv.planes_in, conv.h.in, conv.w.in, first, batch, conv.h.pad, conv.w.pad, rows, columns, xs.get());
    if (gvalues || gbias) gradient_of_values(threads, conv, th, tw, pointer, offset.data(), xs.get(), gs.get(), gvalues, gbias);
    if (gx) gradient_of_input(conv, tw, classes, gs.get(), first, batch, gx);
  }
}

}  // namespace

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

// `size`: planes in, planes out, then for rows and columns each: in, out, kernel, stride, padding
extern "C" int JOIN(conv_forward, ISA)(int kind, int threads, int batch, const int* size, const int* pointer, const int* column,
                                       const void* values, const void* bias, const void* x, void* y) {
  Conv conv{size[0], size[1], {size[2], size[3], size[4], size[5], size[6]}, {size[7], size[8], size[9], size[10], size[11]}};
  PICK((forward<IO, T>(threads, batch, conv, pointer, column, (const T*)values, (const T*)bias, (const IO*)x, (IO*)y)))
}

extern "C" int JOIN(conv_backward, ISA)(int kind, int threads, int batch, const int* size, const int* pointer, const int* column,
                                        const int* turned_pointer, const int* turned_column, const int* order,
                                        const void* values, const void* x, const void* g, void* gx, void* gvalues, void* gbias) {
  Conv conv{size[0], size[1], {size[2], size[3], size[4], size[5], size[6]}, {size[7], size[8], size[9], size[10], size[11]}};
  PICK((backward<IO, T>(threads, batch, conv, pointer, column, turned_pointer, turned_column, order, (const T*)values,
                        (const IO*)x, (const IO*)g, (IO*)gx, (T*)gvalues, (T*)gbias)))
}
